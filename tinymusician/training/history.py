"""What a training's held-out metrics were: part of every checkpoint, and what later stages learn of it at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import Field

from tinymusician.config_model import Document, Number


class TrainingHistory(Document):
    """The held-out metrics before training (`initial`) and at the best step so far, by the metric that decides."""

    initial: dict[str, Number] = Field(default_factory=dict)
    best_step: int | None = None
    best: dict[str, Number] = Field(default_factory=dict)

    def after(self, step: int, metrics: Mapping[str, float], monitor: str) -> TrainingHistory:
        """The history after the metrics of one more step; without metrics, it is the same. The lowest is the best."""
        initial = dict(metrics) if step == 0 else self.initial
        value = metrics.get(monitor, math.nan)
        if math.isfinite(value) and (self.best_step is None or value < self.best[monitor]):
            return TrainingHistory(initial=initial, best_step=step, best=dict(metrics))
        return self.model_copy(update={"initial": initial})
