"""The linear probe: exact on classes that a line separates, chance on noise, blind to unlabelled clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tinymusician.understand.linear_probe import _fit, majority_accuracy, probe

RNG = np.random.default_rng(0)


def clips(count: int, offset: float) -> tuple[np.ndarray, np.ndarray]:
    labels = RNG.integers(0, 3, count)
    centres = np.array([[offset, 0, 0], [0, offset, 0], [0, 0, offset]], np.float32)
    return (centres[labels] + RNG.normal(size=(count, 3))).astype(np.float32), labels.astype(np.int64)


def test_separated_classes_are_read_exactly() -> None:
    assert probe(clips(300, 20), clips(60, 20), clips(60, 20)).accuracy == 1.0


def test_noise_is_read_at_chance() -> None:
    assert probe(clips(600, 0), clips(300, 0), clips(600, 0)).accuracy == pytest.approx(1 / 3, abs=0.07)


def test_unlabelled_clips_are_left_out() -> None:
    features, labels = clips(60, 20)
    wrong = np.concatenate([labels, np.full(60, -100)])
    assert probe(clips(300, 20), clips(60, 20), (np.concatenate([features, -features]), wrong)).accuracy == 1.0


def test_weights_are_where_the_gradient_is_zero() -> None:
    """At the minimum, mean outer product of inputs and residuals plus the penalty's gradient vanish (closed form)."""
    x, y = clips(200, 1)
    weights = _fit(torch.from_numpy(x), torch.from_numpy(y), 3, penalty=0.1).double().numpy()
    inputs = np.concatenate([x, np.ones((200, 1))], axis=1)
    logits = inputs @ weights
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = inputs.T @ (probabilities - np.eye(3)[y]) / 200
    gradient[:-1] += 0.1 * weights[:-1]
    np.testing.assert_allclose(gradient, 0, atol=1e-4)


def test_the_most_frequent_class() -> None:
    assert majority_accuracy(np.array([1, 1, 0, -1, -1, -1]), np.array([1, 0, 0, 0, -1])) == 0.25
