"""The training of one component of a student on several balanced losses, for text encoder and codec."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from tinymusician.data.tokens import rows_of_step
from tinymusician.distill.balance import BalancedModule, Method, balance
from tinymusician.distill.signals import Rows
from tinymusician.training.task import Model, to_device

PART = "part."
"""The prefix of a component's weights in a checkpoint, beside the learned log variances."""


_LEAST = 1e-4
"""The minimum initial value of a loss: a component that starts closer to its teacher gets no higher weight for it."""


class ComponentTask(ABC):
    """Subclasses define the batch, the component's inputs and targets, and the losses of its output."""

    def __init__(self, part: nn.Module, method: Method, rows: int, batch_size: int, seed: int, device: str) -> None:
        """`rows` is the number of training sequences; the untrained component goes to `device`."""
        self.part, self.method, self.count = part.to(device), method, rows
        self.batch_size, self.seed = batch_size, seed
        self.before = self._before(device)
        self.module = BalancedModule(part, method, len(self.before)).to(device)

    def rows(self, step: int, part: int, parts: int) -> Rows:
        """Epochs are permutations; the parts of a step are disjoint."""
        return rows_of_step(step, part, parts, self.batch_size, self.count, self.seed)

    @abstractmethod
    def batch(self, step: int, part: int, parts: int) -> Any:
        """The batch of microbatch `part` of the `parts` of `step`."""

    @abstractmethod
    def targets(self, batch: Any) -> Any:
        """The teacher's targets for a batch, without gradient."""

    @abstractmethod
    def inputs(self, batch: Any, targets: Any) -> tuple[Any, ...]:
        """The component's inputs."""

    @abstractmethod
    def losses(self, output: Any, batch: Any, targets: Any) -> dict[str, Tensor]:
        """The losses of the component's output, by name."""

    def first_batch(self) -> Any:
        """The batch on which losses are measured before training."""
        return self.batch(0, 0, 1)

    @abstractmethod
    def validate(self, model: Model) -> dict[str, float]:
        """Held-out metrics."""

    def loss(self, model: Model, batch: Any, step: int, diagnostics: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """The balanced loss, and each loss with its weight."""
        with torch.no_grad():
            targets = self.targets(batch)
        output, log_variances = model(*self.inputs(batch, targets))
        losses = self.losses(output, batch, targets)
        total, weights = balance(self.method, losses, self.before, log_variances)
        return total, {
            **{name: value.detach() for name, value in losses.items()},
            **{f"weight/{name}": value for name, value in weights.items()},
        }

    @torch.no_grad()
    def _before(self, device: str) -> dict[str, float]:
        """The losses before training, on the first batch, so that a resumed run computes the same values."""
        batch = to_device(self.first_batch(), torch.device(device))
        self.part.eval()
        targets = self.targets(batch)
        losses = self.losses(self.part(*self.inputs(batch, targets)), batch, targets)
        return {name: max(value.item(), _LEAST) for name, value in losses.items()}
