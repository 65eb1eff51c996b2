"""The engine in plain PyTorch, for one worker without ZeRO."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

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


class TorchEngine:
    """Plain PyTorch in one process: for a laptop or a single GPU, and the reference for the other engines."""

    def __init__(
        self,
        module: nn.Module,
        config: AdamConfig,
        precision: ComputeDtype = "float32",
        device: str = "cpu",
        state: EngineState | None = None,
    ) -> None:
        load_weights(module, state)
        self._module, self._max_grad_norm, self._precision = module.to(device), config.max_grad_norm, precision
        self._named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self._optimizer = adam([p for _, p in self._named], config)
        self._updates = state.updates if state is not None else 0
        if state is not None and state.updates:
            for name, parameter in self._named:
                moments = {m: state.moments[f"{m}/{name}"].to(device).clone() for m in MOMENTS}
                updates = torch.tensor(float(state.updates), device=device)
                self._optimizer.state[parameter] = {"step": updates, **moments}

    @property
    def device(self) -> torch.device:
        return next(self._module.parameters()).device

    def __call__(self, *inputs: Any) -> Any:
        return self._module(*inputs)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bfloat16"):
            yield

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, loss: Tensor, rate: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self.backward(loss)
        norm = nn.utils.clip_grad_norm_([p for _, p in self._named], self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._updates += 1
        return float(norm)

    @property
    def updates(self) -> int:
        return self._updates

    def specs(self) -> list[TensorSpec]:
        state = self._module.state_dict()
        weights = [TensorSpec(WEIGHTS_PREFIX + name, tuple(value.shape), value.dtype) for name, value in state.items()]
        return weights + moment_specs(self._named, lambda parameter: parameter.shape)

    def gather(self, targets: Mapping[str, Tensor]) -> None:
        copy_weights(self._module.state_dict(), targets)
        for name, parameter in self._named:
            copy_moments(self._optimizer.state.get(parameter), name, targets)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
