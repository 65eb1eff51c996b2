"""The engine for clusters: DeepSpeed with ZeRO stages 0 to 3, in an initialized process group."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tinymusician.training.engine import (
    MOMENTS,
    WEIGHTS_PREFIX,
    AdamConfig,
    ComputeDtype,
    EngineState,
    TensorSpec,
    adam,
    copy_moments,
    copy_weights,
    load_weights,
    moment_specs,
)


class DeepSpeedEngine:
    """AdamW under DeepSpeed.

    Gradients are averaged over the ranks; each contributes equally many microbatches to a step. In bfloat16 the
    module's weights are bfloat16, beside float32 master weights; at stage 0, which has no master weights, they stay
    float32 and matrix products run under autocast.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: AdamConfig,
        batch_size: int,
        zero_stage: Literal[0, 1, 2, 3],
        precision: ComputeDtype = "float32",
        state: EngineState | None = None,
        grad_accum_steps: int = 1,
    ) -> None:
        """A step has `grad_accum_steps` microbatches of this rank: `backward` is called for all but the last."""
        deepspeed = _deepspeed()
        load_weights(module, state)
        self._module, self._zero_stage = module, zero_stage
        self._autocast = precision == "bfloat16" and zero_stage == 0
        if precision == "bfloat16" and zero_stage and state is None:  # masters are made of what was rounded already
            state = EngineState(
                {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}, {}, 0
            )
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        config = {
            "train_micro_batch_size_per_gpu": batch_size,
            "gradient_accumulation_steps": grad_accum_steps,
            "gradient_clipping": settings.max_grad_norm,
            "bf16": {"enabled": precision == "bfloat16" and not self._autocast},
            # DeepSpeed sums gradients while the backward pass goes on at stage 3 by default, and on GPUs alone.
            "zero_optimization": {"stage": zero_stage, "overlap_comm": zero_stage > 0 and torch.cuda.is_available()},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        }
        model = _AutocastModule(module) if self._autocast else module
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=adam(trained, settings), config=config)
        self._updates = state.updates if state is not None else 0
        if state is not None:
            self._restore(state)

    @property
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            yield

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)
        self._engine.step()  # counts the part; the update comes with the last one

    def step(self, loss: Tensor, rate: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        self._engine.backward(loss, scale_wrt_gas=False)
        gradients = [parameter.grad for _, parameter in self._named() if parameter.grad is not None]
        seen = nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        self._engine.step()
        self._updates += 1
        reported = self._engine.get_global_grad_norm()  # None where no optimizer of DeepSpeed's clips: stage 0, float32
        norm = float(seen if reported is None else reported)
        return norm if norm >= 0 else math.nan  # DeepSpeed says -1 for what is not finite

    @property
    def updates(self) -> int:
        return self._updates

    def specs(self) -> list[TensorSpec]:
        state = self._module.state_dict(keep_vars=True)
        weights = [
            TensorSpec(
                WEIGHTS_PREFIX + name,
                tuple(_full_shape(value)),
                torch.float32 if self._is_sharded(value) else value.dtype,
            )
            for name, value in state.items()
        ]
        return weights + moment_specs(self._named(), _full_shape)

    def gather(self, targets: Mapping[str, Tensor]) -> None:
        if self._zero_stage == 0:
            copy_weights(self._module.state_dict(), targets)
        else:
            self._link_moments()
            for name, value in self._module.state_dict(keep_vars=True).items():
                with self._full_weight(value) as weight:
                    copy_weights({name: weight}, targets)
        for name, parameter in self._named():
            copy_moments(self._full_moments(parameter), name, targets)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self._module.named_parameters() if parameter.requires_grad]

    @contextlib.contextmanager
    def _full_weight(self, value: Tensor) -> Iterator[Tensor]:
        """A tensor of the state dict, collected from all workers where they share it."""
        if self._is_sharded(value):
            yield _utils().safe_get_full_fp32_param(value)
        elif hasattr(value, "ds_id"):
            with _deepspeed().zero.GatheredParameters([value]):
                yield value
        else:
            yield value

    def _full_moments(self, parameter: nn.Parameter) -> Mapping[str, Tensor] | None:
        """A parameter's moments, collected from all workers where they share them; None before the first step."""
        if not self._updates:
            return None
        if self._zero_stage == 0:
            state: Mapping[str, Tensor] = self._engine.optimizer.state[parameter]
            return state
        return {moment: _utils().safe_get_full_optimizer_state(parameter, moment) for moment in MOMENTS}

    def _is_sharded(self, value: Tensor) -> bool:
        """Whether DeepSpeed has float32 weights and moments in flat partitions beside this tensor."""
        return self._zero_stage > 0 and value.requires_grad

    def _restore(self, state: EngineState) -> None:
        """Load float32 weights and moments into DeepSpeed's partitions; the module has its weights already."""
        inner = getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)
        if state.updates:
            for flat in self._flat_parameters(inner):
                zeros = {moment: torch.zeros_like(flat) for moment in MOMENTS}
                updates = torch.tensor(float(state.updates), device=flat.device)
                inner.state[flat] = {"step": updates, **zeros}
            self._link_moments()
        for name, parameter in self._named():
            self._set(parameter, state.weights[name], None)
            for moment in MOMENTS if state.updates else ():
                self._set(parameter, state.moments[f"{moment}/{name}"], moment)

    def _link_moments(self) -> None:
        """Link each parameter to its moments under ZeRO 1 and 2, which do so once, before a second group's exist.

        Private to DeepSpeed: `tests/unit/test_checkpoints.py` names the versions with these attributes.
        """
        if link := getattr(self._engine.optimizer, "_lazy_init_hp_params_optimizer_state", None):
            self._engine.optimizer._hp_optimizer_states_linked = False
            link()

    def _flat_parameters(self, inner: Any) -> list[Tensor]:
        """The keys of the inner optimizer's state: ZeRO-3 hides its flat partitions from the groups."""
        if self._zero_stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [parameter for group in inner.param_groups for parameter in group["params"]]

    def _set(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        value, utils = value.to(self.device), _utils()
        if self._zero_stage == 0:
            if moment is not None:  # the module has its weights already
                self._engine.optimizer.state[parameter][moment].copy_(value)
        elif self._zero_stage == 3:
            shard = _local_shard(value, parameter)  # DeepSpeed's setters of full tensors do not pad here
            if moment is None:
                utils.safe_set_local_fp32_param(parameter, shard)
            else:
                utils.safe_set_local_optimizer_state(parameter, shard, moment)
        elif moment is None:
            utils.safe_set_full_fp32_param(parameter, value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, moment)


class _AutocastModule(nn.Module):
    """A module under bfloat16 autocast of its own: on a GPU, DeepSpeed ends an autocast that it is called in."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        device = next(self.module.parameters()).device
        with torch.autocast(device.type, torch.bfloat16):
            return self.module(*inputs)


def _full_shape(value: Tensor) -> torch.Size:
    """The shape of a parameter or buffer, of which ZeRO 3 leaves an empty tensor on each worker."""
    shape: torch.Size = getattr(value, "ds_shape", value.shape)
    return shape


def _local_shard(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """This worker's slice of a ZeRO-3 parameter, padded with zeros where the parameter does not divide evenly."""
    size = getattr(parameter, "ds_tensor").numel()  # noqa: B009 - attributes that ZeRO-3 adds
    rank = torch.distributed.get_rank(getattr(parameter, "ds_process_group"))  # noqa: B009
    part = value.flatten()[rank * size : (rank + 1) * size]
    return torch.nn.functional.pad(part, (0, size - part.numel()))


def _deepspeed() -> Any:
    """DeepSpeed without its log, and without its CPU collective, which takes a minute to compile."""
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def _utils() -> Any:
    import deepspeed.utils

    return deepspeed.utils
