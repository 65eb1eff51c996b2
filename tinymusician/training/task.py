"""The interface between training loop and task: module, batches, loss, held-out metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Model = Callable[..., Any]
"""The task's module as an engine runs it; called like the module itself."""


class Task(Protocol):
    """A task. A batch depends only on step, microbatch and seed, so a resumed run repeats itself.

    A step consists of equal microbatches (`parts`), which the workers share.
    """

    @property
    def module(self) -> nn.Module:
        """The module whose parameters train; its other tensors are saved with it."""

    def rows(self, step: int, part: int, parts: int) -> npt.NDArray[np.int64]:
        """The rows of microbatch `part` of the `parts` of `step`."""

    def batch(self, step: int, part: int, parts: int) -> Any:
        """The batch of microbatch `part` of the `parts` of `step`."""

    def loss(self, model: Model, batch: Any, step: int, diagnostics: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimize, and scalars to log.

        Without `diagnostics`, those that cost time may be missing: the step is not one that is logged.
        """

    def validate(self, model: Model) -> dict[str, float]:
        """Metrics on held-out data; the monitored one picks the best checkpoint (lower is better)."""


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a (nested) named tuple to `device`."""
    if isinstance(batch, Tensor):
        if device.type == "cuda" and batch.device.type == "cpu":
            batch = batch.pin_memory()  # otherwise the copy waits for all work of the device
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple):
        moved = (to_device(part, device) for part in batch)
        return type(batch)(*moved) if hasattr(batch, "_fields") else tuple(moved)
    return batch
