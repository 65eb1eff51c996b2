"""What a training loop needs to know of a task: its module, its batches, its loss, its held-out figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Model = Callable[..., Any]
"""The task's module as an engine offers it: called like the module itself."""


class Task(Protocol):
    """Everything about a batch follows from the step, its part and the seed, so a resumed run repeats itself.

    A step consists of equal parts, which are dealt to however many workers there are.
    """

    @property
    def module(self) -> nn.Module:
        """The module whose parameters train; its other tensors are saved with it."""

    def rows(self, step: int, part: int, parts: int) -> npt.NDArray[np.int64]:
        """Which rows of its data part `part` of the `parts` of `step` is made of, all counted from 0."""

    def batch(self, step: int, part: int, parts: int) -> Any:
        """The batch of part `part` of the `parts` of `step`."""

    def loss(self, model: Model, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and scalars to report."""

    def validate(self, model: Model) -> dict[str, float]:
        """Figures on held-out data; the one named by the plan decides which checkpoint is best (lower is better)."""


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a (nested) named tuple to `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple):
        moved = (to_device(part, device) for part in batch)
        return type(batch)(*moved) if hasattr(batch, "_fields") else tuple(moved)
    return batch
