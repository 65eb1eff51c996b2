"""Training one part of a student on several losses, balanced: what text encoder and codec have in common."""

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
"""How the names of a part's weights begin in a checkpoint, beside what is learned of its losses."""


_LEAST = 1e-4
"""What begins nearer to its teacher than this, in shares or nats, is not weighed any higher for it."""


class ComponentTask(ABC):
    """Its heirs say what a batch is, what the part is asked, and which losses its answer has."""

    def __init__(self, part: nn.Module, method: Method, rows: int, batch_size: int, seed: int, device: str) -> None:
        """`rows` are those of the sequences that it learns on; the part is not trained yet, and goes to `device`."""
        self.part, self.method, self.count = part.to(device), method, rows
        self.batch_size, self.seed = batch_size, seed
        self.before = self._before(device)
        self.module = BalancedModule(part, method, len(self.before)).to(device)

    def rows(self, step: int, part: int, parts: int) -> Rows:
        """Epochs are permutations; the parts of a step are disjoint."""
        return rows_of_step(step, part, parts, self.batch_size, self.count, self.seed)

    @abstractmethod
    def batch(self, step: int, part: int, parts: int) -> Any:
        """The batch of part `part` of the `parts` of `step`."""

    @abstractmethod
    def targets(self, batch: Any) -> Any:
        """What the teacher says of it; no gradient is taken."""

    @abstractmethod
    def inputs(self, batch: Any, targets: Any) -> tuple[Any, ...]:
        """What the part is called with."""

    @abstractmethod
    def losses(self, answer: Any, batch: Any, targets: Any) -> dict[str, Tensor]:
        """The losses of what it answered, by name."""

    def first_batch(self) -> Any:
        """The batch on which losses are measured before training."""
        return self.batch(0, 0, 1)

    @abstractmethod
    def validate(self, model: Model) -> dict[str, float]:
        """Held-out figures."""

    def loss(self, model: Model, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The balanced losses; each of them and its weight beside it."""
        with torch.no_grad():
            targets = self.targets(batch)
        answer, log_variances = model(*self.inputs(batch, targets))
        losses = self.losses(answer, batch, targets)
        total, weights = balance(self.method, losses, self.before, log_variances)
        return total, {
            **{name: value.detach() for name, value in losses.items()},
            **{f"weight/{name}": value for name, value in weights.items()},
        }

    @torch.no_grad()
    def _before(self, device: str) -> dict[str, float]:
        """What the losses are before training, on the first batch: the same wherever and whenever a run goes on."""
        batch = to_device(self.first_batch(), torch.device(device))
        self.part.eval()
        targets = self.targets(batch)
        losses = self.losses(self.part(*self.inputs(batch, targets)), batch, targets)
        return {name: max(value.item(), _LEAST) for name, value in losses.items()}
