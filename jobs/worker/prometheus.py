"""Exports a run's latest metrics to Prometheus; Ray serves them on the node of the run's first worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.util.metrics import Gauge

EXPORTED_METRICS = {
    "step": "Completed training steps.",
    "loss": "The training loss.",
    "codes_per_second": "Training throughput of all workers, in codes per second.",
    "gradient_norm": "The gradient's norm before it is clipped.",
    "held_out/kl": "Held-out forward KL to the teacher, in nats per code.",
}
"""Exported metrics: name in the run's metrics, and help text."""

if TYPE_CHECKING:
    from tinymusician.training.metrics import Row


class PrometheusLogger:
    """A metric sink. Prometheus sees `ray_tinymusician_training_NAME{run, stage}`."""

    def __init__(self, run: str, stage: str) -> None:
        self._tags = {"run": run, "stage": stage}
        self._gauges = {
            name: Gauge(f"tinymusician_training_{name.replace('/', '_')}", meaning, ("run", "stage"))
            for name, meaning in EXPORTED_METRICS.items()
        }

    def add(self, row: Row) -> None:
        for name, gauge in self._gauges.items():
            if row.get(name) is not None:
                gauge.set(row[name], self._tags)

    def flush(self) -> None:
        """Do nothing: Ray collects gauges."""
