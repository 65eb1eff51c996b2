"""Schedules of training: the stage α(t) and the temperature τ(t) (TinyMusician, eq. 4 and 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


def stage(step: int, switch: int, transition: int = 0) -> float:
    """α(t): 1 before `switch`, 0 after, with a linear ramp of `transition` steps between (0: the paper's hard step)."""
    if step < switch:
        return 1.0
    if step >= switch + transition:
        return 0.0
    return 1.0 - (step - switch + 1) / (transition + 1)


def temperature(position: float, length: float, initial: float, final: float) -> float:
    """τ(t) = τ_init - (τ_init - τ_final)·t / t_max: linear decay, constant beyond t_max."""
    done = min(1.0, position / length) if length > 0 else 1.0
    return initial - (initial - final) * done


@dataclass(frozen=True)
class TemperatureSchedule:
    """τ from `initial` to `final`, along the `steps` of training or along the sequence."""

    initial: float
    final: float
    axis: Literal["sequence", "training"]
    steps: int

    def at(self, step: int, length: int) -> Tensor:
        """τ at a training step, for each of `length` positions of the sequence, [S]."""
        if self.axis == "training":
            return torch.full((length,), temperature(step, self.steps, self.initial, self.final))
        return torch.tensor([temperature(position, length - 1, self.initial, self.final) for position in range(length)])
