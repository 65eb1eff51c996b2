"""Audio in 16-bit samples, as files and caches store it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_LARGEST = np.float32(32767)


def to_pcm16(wave: npt.NDArray[np.float32 | np.float64]) -> npt.NDArray[np.int16]:
    """The nearest 16-bit samples of a wave in [-1, 1]; what is beyond is clipped."""
    return np.asarray((np.clip(wave, -1, 1) * _LARGEST).round(), np.int16)


def from_pcm16(samples: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """The wave in [-1, 1] of 16-bit samples."""
    return np.asarray(samples, np.float32) / _LARGEST
