"""The label divergence: how far an audio classifier's labels for generated clips differ from those for real clips.

    KL(p_real ‖ p_generated) over the classes, mean over pairs of clips of one prompt

Source: "KL" of AudioGen and MusicGen (Kreuk et al., arXiv 2209.15352, section 4), there with PaSST's 527 classes. The
reverse direction is given beside it. A probability of 0 counts as 1e-6, as in AudioCraft's metric.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tinymusician.errors import DataError
from tinymusician.evaluate.bootstrap import mean_interval, proportion_interval
from tinymusician.evaluate.clip_embeddings import Floats
from tinymusician.evaluate.results import LabelDivergence

_MIN_PROBABILITY = 1e-6


def label_divergence(real_NC: Floats, generated_NC: Floats, seed: int = 0) -> LabelDivergence:
    """The divergence between the class probabilities of pairs of clips.

    Raises:
        DataError: the shapes differ, or a row is not a probability distribution.
    """
    if real_NC.shape != generated_NC.shape:
        raise DataError(f"labels: {real_NC.shape} real and {generated_NC.shape} generated; pairs of clips are needed")
    for side in (real_NC, generated_NC):
        if not (np.all(side >= 0) and np.allclose(side.sum(axis=1), 1, atol=1e-3)):
            raise DataError("labels: every clip's probabilities must be 0 or more and sum to 1")
    same = real_NC.argmax(axis=1) == generated_NC.argmax(axis=1)
    return LabelDivergence(
        forward=mean_interval(_divergence(real_NC, generated_NC), seed),
        reverse=mean_interval(_divergence(generated_NC, real_NC), seed),
        agreement=proportion_interval(same),
    )


def _divergence(p_NC: Floats, q_NC: Floats) -> npt.NDArray[np.float64]:
    p, q = (np.maximum(side.astype(np.float64), _MIN_PROBABILITY) for side in (p_NC, q_NC))
    return np.asarray((p * np.log(p / q)).sum(axis=1))
