"""Probabilities of logits in NumPy."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Real = TypeVar("Real", np.float32, np.float64)


def softmax(logits: npt.NDArray[Real]) -> npt.NDArray[Real]:
    """Probabilities over the last axis, in the type of the logits."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True), logits.dtype)


def log_softmax(logits: npt.NDArray[Real]) -> npt.NDArray[Real]:
    """Log-probabilities over the last axis, in the type of the logits."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), logits.dtype)
