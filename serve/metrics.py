"""Prometheus metrics of the endpoint. Ray collects them on every node and exports them there.

Prometheus sees the names with the prefix `ray_`; docs/serving.md lists them.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

_SECONDS = [0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 120.0]
_FACTORS = [0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0]


class IngressMetrics:
    """Requests, as the ingress sees them."""

    def __init__(self) -> None:
        self.requests = Counter("tinymusician_requests", "Requests for audio, by HTTP status.", ("status",))
        self.first_audio = Histogram(
            "tinymusician_time_to_first_audio_seconds", "Time from the request to its first audio.", _SECONDS
        )
        self.request_seconds = Histogram(
            "tinymusician_request_seconds", "Time from the request to the end of its audio.", _SECONDS
        )
        self.requests_in_flight = Gauge("tinymusician_requests_in_flight", "Requests that run or wait.")
        self.engine_failures = Counter("tinymusician_engine_failures", "Engines that died while they ran a request.")


def expiry_gauge() -> Gauge:
    """Of the release that a replica follows, whether its bundle generates or answers questions."""
    description = "Time until a signed document expires: root, release or timestamp."
    return Gauge("tinymusician_seconds_until_expiry", description, ("document",))


class EngineMetrics:
    """One engine replica."""

    def __init__(self) -> None:
        self.rows = Gauge("tinymusician_batch_rows", "Rows of the running batch.")
        self.waiting = Gauge("tinymusician_waiting_requests", "Requests that wait for batch rows.")
        self.real_time_factor = Histogram(
            "tinymusician_real_time_factor", "Time a request took, divided by the length of its audio.", _FACTORS
        )
        self.audio = Counter("tinymusician_audio_seconds", "Seconds of audio of completed requests.")
        self.switches = Counter(
            "tinymusician_bundle_switches", "New bundles, by outcome: accepted or rejected.", ("outcome",)
        )
        self.store_errors = Counter("tinymusician_store_errors", "Polls of the alias that failed.")
        self.expiry = expiry_gauge()
        self.version = Gauge("tinymusician_bundle_version", "Version of the loaded release; 0 if it is none.")
