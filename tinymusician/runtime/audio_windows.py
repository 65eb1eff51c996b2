"""Audio in windows of the length, and at the level, of the clips that a model has learnt from."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_SILENCE = 1e-5


def split_windows(samples: int, window: int) -> list[tuple[int, int]]:
    """Windows that cover all samples; the last one ends with the audio, and overlaps with the one before it."""
    if samples <= window:
        return [(0, samples)]
    starts = [*range(0, samples - window, window), samples - window]
    return [(start, start + window) for start in starts]


def at_level(wave: Floats, window: int, levels: tuple[float, float] | None) -> Floats:
    """Audio whose loudest window has a root mean square between two levels; silence stays as it is."""
    windows = (wave[start:end] for start, end in split_windows(len(wave), window))
    loudest = max(math.sqrt(np.square(each, dtype=np.float64).mean()) for each in windows)
    if levels is None or loudest < _SILENCE or levels[0] <= loudest <= levels[1]:
        return wave
    return np.asarray(wave * np.float32(min(max(loudest, levels[0]), levels[1]) / loudest), np.float32)
