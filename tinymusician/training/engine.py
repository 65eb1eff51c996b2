"""Engines: they run a module forward, and turn a loss into a step of AdamW.

An engine's state is complete and in float32, whatever the engine uses inside: weights and moments by parameter name.
Another engine, ZeRO stage or number of workers can therefore continue from a checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

ComputeDtype = Literal["float32", "bfloat16"]
MOMENTS = ("exp_avg", "exp_avg_sq")


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

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    updates: int


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

    def state(self) -> EngineState:
        """The complete state on the CPU; all workers must call it, and rank 0's result is complete."""


def moments_of(optimizer_state: dict[str, Tensor], name: str) -> Iterable[tuple[str, Tensor]]:
    """One parameter's moments under the names of `EngineState.moments`."""
    return ((f"{moment}/{name}", optimizer_state[moment]) for moment in MOMENTS)


def load_weights(module: nn.Module, state: EngineState | None) -> None:
    """Load a saved state's weights into `module`."""
    if state is not None:
        module.load_state_dict(state.weights)


def adam(parameters: list[nn.Parameter], config: AdamConfig) -> torch.optim.AdamW:
    """AdamW in one kernel, without decay on vectors (biases and norms), as is usual for transformers."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=betas, fused=True)
