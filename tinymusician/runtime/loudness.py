"""The level of generated audio: peak, loudness, and a fade at the end. Samples are mono, float32 [N]."""

from __future__ import annotations

import numpy as np

from tinymusician.errors import RequestError
from tinymusician.runtime.audio import Samples
from tinymusician.runtime.sampling import check_real

_BLOCK = 0.4
_GATE_LUFS = -70.0
"""The gate of the measurement, in LUFS."""
PEAK = 10 ** (-1 / 20)
"""-1 dB of full scale: the peak of audio that would clip otherwise."""


def normalize_peak(samples: Samples) -> tuple[Samples, float | None]:
    """The samples, scaled to a peak of -1 dB of full scale if they exceed full scale, and their peak in dB if so."""
    peak = float(np.abs(samples).max(initial=0))
    if peak <= 1:
        return samples, None
    return (samples * np.float32(PEAK / peak)).astype(np.float32), 20 * float(np.log10(peak))


def fade_out_samples(samples: Samples, rate: int, seconds: float) -> Samples:
    """The samples with a linear fade to silence over the last `seconds`."""
    length = round(min(seconds * rate, len(samples)))
    gain = np.ones(len(samples), np.float32)
    gain[len(samples) - length :] = np.linspace(1, 0, length, dtype=np.float32)
    return samples * gain


def check_loudness(loudness: float, seconds: float | None) -> None:
    """Check a loudness to normalize to, and the audio's length if it is known, before anything is generated.

    Raises:
        RequestError: it is no loudness, or cannot be measured.
        ModuleNotFoundError: pyloudnorm is not installed.
    """
    import pyloudnorm  # noqa: F401

    if seconds is not None and seconds < _BLOCK:
        raise RequestError(f"loudness: {_BLOCK:g} s of audio or more are needed")
    check_real("loudness", loudness, lambda level: _GATE_LUFS <= level <= 0, f"{_GATE_LUFS:g} to 0 LUFS")


def normalized(samples: Samples, rate: int, loudness: float) -> Samples:
    """The samples at an integrated loudness in LUFS (ITU-R BS.1770-4, by pyloudnorm); silence stays silence.

    Raises:
        RequestError: the audio is shorter than a block of the measurement, 0.4 s.
    """
    import pyloudnorm

    check_loudness(loudness, len(samples) / rate)
    measured = pyloudnorm.Meter(rate).integrated_loudness(samples.astype(np.float64))
    return samples if np.isinf(measured) else samples * np.float32(10 ** ((loudness - measured) / 20))
