"""The training task of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from tinymusician.data.splits import Split
from tinymusician.distill.closeness import closeness
from tinymusician.distill.objective import distillation_loss
from tinymusician.distill.signals import SignalSet, TeacherSignals
from tinymusician.distill.task import ObjectiveConfig, ObjectiveTask
from tinymusician.models.divergences import mean_over_valid, on_logits, reverse_kl
from tinymusician.models.protocols import Musicgen
from tinymusician.training.task import Model


class TrackedDistillTask(ObjectiveTask):
    """Distillation that also validates its own objective, as of the current step, on validation and test prompts."""

    def __init__(
        self,
        student: Musicgen,
        train: SignalSet,
        held_out: Mapping[Split, Sequence[TeacherSignals]],
        objective: ObjectiveConfig,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__(student, train, objective, batch_size, seed)
        self._held_out, self._latest = held_out, 0

    def loss(
        self, model: Model, batch: TeacherSignals, step: int, diagnostics: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective, at a step that `validate` uses."""
        self._latest = step
        return super().loss(model, batch, step, diagnostics)

    def validate(self, model: Model) -> dict[str, float]:
        """By split: the objective's loss, forward KL (`kl`), reverse KL and agreement."""
        metrics: dict[str, float] = {}
        for split, batches in self._held_out.items():
            parts = [self._measure(model, batch) for batch in batches]
            rows = [len(batch.logits) for batch in batches]
            for name in parts[0]:
                metrics[f"{split}/{name}"] = float(np.average([part[name] for part in parts], weights=rows))
        return metrics | {"kl": metrics["validation/kl"]}  # the monitored metric, as in a distillation

    def _measure(self, model: Model, batch: TeacherSignals) -> dict[str, float]:
        logits, mask = self.student_logits(model, batch), batch.sequences.mask
        tau = self.config.temperature.at(self._latest, mask.shape[-1]).to(logits.device)
        values = distillation_loss(batch.logits, logits, mask, self.config.loss_weights_at(self._latest), tau)
        agreement = closeness(batch.logits, logits, mask)
        reverse = mean_over_valid(on_logits(reverse_kl, batch.logits.float(), logits.float(), mask), mask)
        return {
            "loss": mean_over_valid(values, mask).item(),
            "kl": agreement["kl"].item(),
            "reverse_kl": reverse.item(),
            "agreement": agreement["agreement"].item(),
        }
