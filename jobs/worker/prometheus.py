"""A run's latest figures for Prometheus, which Ray serves on the node where the run's first worker is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.util.metrics import Gauge

EXPORTED_METRICS = {
    "step": "Training steps that are done.",
    "loss": "The training loss.",
    "codes_per_second": "Codes that all workers together train on in a second.",
    "gradient_norm": "The gradient's norm before it is clipped.",
    "held_out/kl": "Held-out forward KL to the teacher, in nats a code.",
}
"""What is shown, by its name in the metrics."""

if TYPE_CHECKING:
    from tinymusician.training.metrics import Row


class PrometheusLogger:
    """Watches a run's metrics. Prometheus sees `ray_tinymusician_training_NAME{run, stage}`."""

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
        """Ray gathers gauges by itself."""
