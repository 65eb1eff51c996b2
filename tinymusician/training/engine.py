"""Engines: they run a module forward, and turn a loss into a step of AdamW.

An engine's state is complete and in float32, whatever the engine uses inside: weights and moments by parameter name.
Another engine, ZeRO stage or number of workers can therefore continue from a checkpoint.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

ComputeDtype = Literal["float32", "bfloat16"]
MOMENTS = ("exp_avg", "exp_avg_sq")
WEIGHTS_PREFIX, MOMENTS_PREFIX = "weights/", "moments/"


@dataclass(frozen=True)
class AdamConfig:
    """AdamW's settings that are constant during a run."""

    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class EngineState:
    """A module's state dict, its `moments` `exp_avg/NAME` and `exp_avg_sq/NAME`, and the number of `updates`."""

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    updates: int


class TensorSpec(NamedTuple):
    """Name, shape and type of a tensor of an engine's state: `weights/NAME`, or `moments/exp_avg/NAME`."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class TrainEngine(Protocol):
    """A module under training."""

    @property
    def device(self) -> torch.device:
        """The device of the module, where batches must be."""

    def __call__(self, *inputs: Any) -> Any:
        """Run the module forward."""

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The context in which the loss of a step is computed."""

    def backward(self, loss: Tensor) -> None:
        """Back-propagate the loss of a microbatch that is not the step's last; gradients are accumulated."""

    def step(self, loss: Tensor, rate: float) -> float:
        """Back-propagate the last microbatch, clip, and update with learning rate `rate`.

        Returns the gradient's norm before clipping; it is not finite if that of any worker is not.
        """

    @property
    def updates(self) -> int:
        """The number of optimizer steps so far."""

    def specs(self) -> list[TensorSpec]:
        """The tensors of the complete state, the same on all workers; moments are in float32."""

    def gather(self, targets: Mapping[str, Tensor]) -> None:
        """Copy tensors of the state into the targets of these names, on the CPU.

        All workers must call it together; each may have other targets. Moments before the first step are zeros.
        """


def full_state(engine: TrainEngine, is_needed: bool = True) -> EngineState:
    """The complete state on the CPU; all workers must call this, and those that do not need it get an empty one."""
    specs = engine.specs() if is_needed else []
    targets = {spec.name: torch.empty(spec.shape, dtype=spec.dtype) for spec in specs}
    engine.gather(targets)
    moments = with_prefix(targets, MOMENTS_PREFIX) if engine.updates else {}
    return EngineState(with_prefix(targets, WEIGHTS_PREFIX), moments, engine.updates)


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def moment_specs(named: Iterable[tuple[str, nn.Parameter]], shape: Callable[[Tensor], torch.Size]) -> list[TensorSpec]:
    """The moments of parameters, whose complete shapes `shape` returns."""
    return [
        TensorSpec(f"{MOMENTS_PREFIX}{moment}/{name}", tuple(shape(parameter)), torch.float32)
        for name, parameter in named
        for moment in MOMENTS
    ]


def copy_weights(state_dict: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    """Copy weights into the targets of their names; from a GPU the copies may not be complete yet."""
    for name, value in state_dict.items():
        if (target := targets.get(WEIGHTS_PREFIX + name)) is not None:
            target.copy_(value.detach(), non_blocking=True)


def copy_moments(optimizer_state: Mapping[str, Tensor] | None, name: str, targets: Mapping[str, Tensor]) -> None:
    """Copy a parameter's moments into the targets of their names; zeros, if the optimizer has none yet."""
    for moment in MOMENTS:
        target = targets.get(f"{MOMENTS_PREFIX}{moment}/{name}")
        if target is None:
            continue
        if optimizer_state:
            target.copy_(optimizer_state[moment], non_blocking=True)
        else:
            target.zero_()


def load_weights(module: nn.Module, state: EngineState | None) -> None:
    """Load a saved state's weights into `module`."""
    if state is not None:
        module.load_state_dict(dict(state.weights))


def adam(parameters: list[nn.Parameter], config: AdamConfig) -> torch.optim.AdamW:
    """AdamW in one kernel, without decay on vectors (biases and norms), as is usual for transformers."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=betas, fused=True)
