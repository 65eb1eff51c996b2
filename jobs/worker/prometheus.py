"""Exports a run's latest metrics to Prometheus; Ray serves them on the node of the run's first worker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ray.util.metrics import Gauge

from serve.gauge_refresh import GaugeRefresh

EXPORTED_METRICS = {
    "step": "Completed training steps.",
    "loss": "The training loss.",
    "codes_per_second": "Training throughput of all workers, in codes per second.",
    "gradient_norm": "The gradient's norm before it is clipped.",
    "held_out/kl": "Held-out forward KL to the teacher, in nats per code.",
}
"""Exported metrics: name in the run's metrics, and help text."""
LAST_STEP = "last_step_timestamp_seconds"
"""The Unix time of the last completed step, or of the stage's start. It lasts, so a run that hangs is seen."""

if TYPE_CHECKING:
    from tinymusician.training.metrics import Row


class PrometheusLogger:
    """A metric sink. Prometheus sees `ray_tinymusician_training_NAME{run, stage}` until `close`."""

    def __init__(self, run: str, stage: str) -> None:
        self._tags = {"run": run, "stage": stage}
        helps = {**EXPORTED_METRICS, LAST_STEP: "Unix time of the last completed step."}
        self._gauges = {
            name: Gauge(f"tinymusician_training_{name.replace('/', '_')}", meaning, ("run", "stage"))
            for name, meaning in helps.items()
        }
        self._values: Row = {LAST_STEP: time.time()}
        self._refresh = GaugeRefresh(self._set)

    def add(self, row: Row) -> None:
        self._values |= {name: row[name] for name in EXPORTED_METRICS if row.get(name) is not None}

    def on_step(self, step: int) -> None:
        """Tell that so many steps are completed."""
        if step != self._values.get("step"):
            self._values |= {"step": step, LAST_STEP: time.time()}

    def flush(self) -> None:
        """Do nothing: Ray collects gauges."""

    def close(self) -> None:
        """Let the run disappear from Prometheus."""
        self._refresh.close()

    def _set(self) -> None:
        for name, value in tuple(self._values.items()):
            self._gauges[name].set(value, self._tags)
