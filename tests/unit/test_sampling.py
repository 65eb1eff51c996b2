"""Guidance and draws against transformers' own logits processors, and against the distribution itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tinymusician.runtime.sampling import SamplingParams, draw, guide, probabilities

LOGITS = (np.random.default_rng(0).standard_normal((3, 4, 50)) * 3).astype(np.float32)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, 50, 80])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.2, 1e-6])
def test_sampling_distribution_equals_transformers(temperature: float, top_k: int, top_p: float) -> None:
    scores = torch.from_numpy(LOGITS.astype(np.float64)).reshape(-1, 50)
    if temperature != 1:
        scores = TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    expected = torch.softmax(scores, -1).reshape(LOGITS.shape).numpy()
    np.testing.assert_allclose(probabilities(LOGITS, SamplingParams(temperature, top_k, top_p)), expected, atol=1e-12)


def test_draws_follow_the_distribution() -> None:
    """Evenly spread uniform numbers give each code as often as its share says, to one draw."""
    count, sampling = 20_000, SamplingParams(0.8, 12, 0.95)
    uniforms = (np.arange(count) + 0.5) / count
    drawn = draw(np.broadcast_to(LOGITS[0, 0], (count, 50)), uniforms, sampling)
    shares = np.bincount(drawn, minlength=50)
    assert np.abs(shares - count * probabilities(LOGITS[0, 0], sampling)).max() <= 1


def test_extreme_random_numbers_are_valid_codes() -> None:
    only = np.full(5, -np.inf, np.float32)
    only[3] = 0
    assert draw(only, np.array(0.0), SamplingParams(top_k=0)) == 3
    assert draw(only, np.array(np.nextafter(1, 0)), SamplingParams(top_k=0)) == 3


def test_greedy_decoding_needs_no_random_numbers() -> None:
    drawn = draw(LOGITS, np.full((3, 4), 0.99), SamplingParams(temperature=0))
    assert np.array_equal(drawn, LOGITS.argmax(-1))
    assert np.array_equal(draw(LOGITS, np.full((3, 4), 0.99), SamplingParams(top_k=1)), LOGITS.argmax(-1))


def test_guidance() -> None:
    assert guide(2.0, 1.0, 3.0) == 4.0
    assert guide(2.0, 1.0, 1.0) == 2.0
    assert guide(2.0, 1.0, 0.0) == 1.0
