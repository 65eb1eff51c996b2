"""What is measured, for Prometheus: Ray gathers it on every node and serves it there.

Names as Prometheus sees them begin with `ray_tinymusician_`; docs/serving.md lists them.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

_SECONDS = [0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 120.0]
_FACTORS = [0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0]


class IngressMetrics:
    """What the front sees of requests."""

    def __init__(self) -> None:
        self.requests = Counter(
            "tinymusician_requests", "Requests for audio, by the HTTP status that they ended with.", ("status",)
        )
        self.first_audio = Histogram(
            "tinymusician_time_to_first_audio_seconds", "From the request to its first sound.", _SECONDS
        )
        self.whole = Histogram("tinymusician_request_seconds", "From the request to the end of its audio.", _SECONDS)
        self.requests_in_flight = Gauge("tinymusician_requests_in_flight", "Requests that play or wait.")
        self.losses = Counter("tinymusician_engine_losses", "Engines that were lost while they played for somebody.")


class EngineMetrics:
    """What an engine sees of itself."""

    def __init__(self) -> None:
        self.rows = Gauge("tinymusician_batch_rows", "Rows in the running batch.")
        self.waiting = Gauge("tinymusician_waiting_requests", "Pieces that wait for rows.")
        self.factor = Histogram(
            "tinymusician_real_time_factor", "Seconds that a piece took, over the seconds that it lasts.", _FACTORS
        )
        self.audio = Counter("tinymusician_audio_seconds", "Seconds of audio that were played to their end.")
        self.switches = Counter("tinymusician_bundle_switches", "Bundles that came: taken, or refused.", ("outcome",))
        self.store_errors = Counter("tinymusician_store_errors", "Looks at the alias that failed.")
        self.version = Gauge("tinymusician_bundle_version", "The version of the release that plays; 0 if it is none.")
