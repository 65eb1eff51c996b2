"""The measured cost of playing a bundle."""

from __future__ import annotations

from tinymusician.config_model import Document


class PlaybackCost(Document):
    """The cost of one clip of `seconds`, without the start of Python: times in seconds, and the process's peak memory.

    `real_time_factor` is `generate_seconds` per second of audio.
    """

    seconds: float
    load_seconds: float
    generate_seconds: float
    real_time_factor: float
    peak_memory_bytes: int
