"""The label divergence: how far an audio classifier hears other things in a clip than in the real one.

    KL(p_real ‖ p_made) over the classes, mean over pairs of clips of one prompt

Source: "KL" of AudioGen and MusicGen (Kreuk et al., arXiv 2209.15352, section 4), there with PaSST's 527 classes. The
other direction is given beside it. A probability of 0 counts as 1e-6, as in AudioCraft's metric.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinymusician.errors import DataError
from tinymusician.evaluate.bootstrap import Interval, mean_interval
from tinymusician.evaluate.clip_embeddings import Floats

_LEAST = 1e-6


@dataclass(frozen=True)
class LabelDivergence:
    """In nats `forward` is KL(real ‖ made), `reverse` KL(made ‖ real); `agreement` is of the likeliest labels."""

    forward: Interval
    reverse: Interval
    agreement: Interval


def label_divergence(real_NC: Floats, made_NC: Floats, seed: int = 0) -> LabelDivergence:
    """Of class probabilities of pairs of clips.

    Raises:
        DataError: unlike shapes, or rows that are no probabilities.
    """
    if real_NC.shape != made_NC.shape:
        raise DataError(f"labels: {real_NC.shape} real and {made_NC.shape} made; pairs of clips are needed")
    for side in (real_NC, made_NC):
        if not (np.all(side >= 0) and np.allclose(side.sum(axis=1), 1, atol=1e-3)):
            raise DataError("labels: every clip's probabilities must be 0 or more and sum to 1")
    forward, reverse = _divergence(real_NC, made_NC), _divergence(made_NC, real_NC)
    same = real_NC.argmax(axis=1) == made_NC.argmax(axis=1)
    return LabelDivergence(*(mean_interval(values, seed) for values in (forward, reverse, same)))


def _divergence(p_NC: Floats, q_NC: Floats) -> npt.NDArray[np.float64]:
    p, q = (np.maximum(side.astype(np.float64), _LEAST) for side in (p_NC, q_NC))
    return np.asarray((p * np.log(p / q)).sum(axis=1))
