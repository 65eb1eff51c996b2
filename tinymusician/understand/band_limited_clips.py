"""Clips without the highest frequencies, as telephones, low rates and strong compression leave them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tinymusician.models.spectral_front_end import RATE
from tinymusician.runtime.audio_reader import resampled
from tinymusician.understand.spectra import Waves

LOWEST_RATE = 4000
"""The lowest rate, in Hz, at which a clip is sampled on its way: 2 kHz are left."""


def random_rates(count: int, share: float, seed: int) -> npt.NDArray[np.int64]:
    """Rates in Hz for a share of the clips, uniform in the logarithm between the lowest and the full one; else 0."""
    rng = np.random.default_rng((seed, 1))
    rates = np.exp(rng.uniform(np.log(LOWEST_RATE), np.log(RATE), count)).round().astype(np.int64)
    return np.where(rng.random(count) < share, rates, 0)


def band_limited(waves: Waves, rates: npt.NDArray[np.int64]) -> Waves:
    """Read clips with `waves`, and resample those that have a rate in Hz, [clips], to it and back."""

    def read(rows: slice) -> npt.NDArray[np.float32]:
        clips = waves(rows)
        for clip, rate in zip(clips, rates[rows].tolist(), strict=True):
            if rate:
                limited = resampled(resampled(clip, RATE, rate), rate, RATE)[: len(clip)]
                clip[:] = np.pad(limited, (0, len(clip) - len(limited)))
        return clips

    return read
