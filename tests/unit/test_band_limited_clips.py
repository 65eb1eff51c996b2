"""Clips without high frequencies: what is lost, and which clips lose it."""

from __future__ import annotations

import numpy as np

from tinymusician.models.spectral_front_end import RATE
from tinymusician.understand.band_limited_clips import LOWEST_RATE, band_limited, random_rates

CLIPS = np.random.default_rng(0).standard_normal((3, RATE)).astype(np.float32)


def power(wave: np.ndarray, low: float, high: float) -> float:
    """Of white noise, as a share of the power that it had."""
    spectrum = np.abs(np.fft.rfft(wave)) ** 2 / len(wave)
    return float(spectrum[int(low) : int(high)].mean())


def test_frequencies_above_half_the_rate_are_lost() -> None:
    clips = band_limited(lambda rows: CLIPS[rows].copy(), np.array([0, 8000, 11_025]))(slice(0, 3))
    np.testing.assert_array_equal(clips[0], CLIPS[0])
    for clip, rate in ((clips[1], 8000), (clips[2], 11_025)):
        assert power(clip, 0.52 * rate, RATE // 2) < 1e-4
        assert 0.9 < power(clip, 0, 0.45 * rate) < 1.1


def test_a_share_of_the_clips_has_rates_of_all_octaves() -> None:
    rates = random_rates(20_000, 0.25, seed=0)
    limited = rates[rates > 0]
    assert abs(len(limited) / 20_000 - 0.25) < 0.01
    assert (limited.min(), limited.max()) >= (LOWEST_RATE, LOWEST_RATE)
    assert limited.max() <= RATE
    assert abs(float(np.mean(limited < 8000)) - 0.5) < 0.02, "4 to 8 kHz is one of two octaves"
    assert not random_rates(100, 0.0, seed=0).any()
