"""Probabilities of logits against SciPy, and 16-bit samples against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special

from tinymusician.runtime.pcm16 import from_pcm16, to_pcm16
from tinymusician.runtime.softmax import log_softmax, softmax


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities(dtype: type[np.float32 | np.float64]) -> None:
    logits = np.random.default_rng(0).normal(0, 30, (5, 7)).astype(dtype)
    logits[0, 0], logits[1] = -np.inf, 1e4
    for actual, expected in ((softmax, scipy.special.softmax), (log_softmax, scipy.special.log_softmax)):
        result = actual(logits)
        assert result.dtype == dtype
        np.testing.assert_allclose(result, expected(logits.astype(np.float64), -1), rtol=1e-5, atol=1e-7)


def test_every_16_bit_sample_comes_back() -> None:
    samples = np.arange(-32767, 32768, dtype=np.int16)
    np.testing.assert_array_equal(to_pcm16(from_pcm16(samples)), samples)


def test_a_wave_is_rounded_and_clipped() -> None:
    wave = np.array([0.6 / 32767, -0.6 / 32767, 0.4 / 32767, 1.0, 2.5, -2.5])
    assert to_pcm16(wave).tolist() == [1, -1, 0, 32767, 32767, -32767]
