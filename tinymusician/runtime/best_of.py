"""Best of n: of several clips of one prompt, the one that keeps best what the prompt claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinymusician.runtime.audio_reader import resampled
from tinymusician.runtime.prompt_claims import adherence, rankable_claims
from tinymusician.runtime.question_answerer import Check, QuestionAnswerer, Samples


class Ranking(NamedTuple):
    """The number of the clip that keeps a prompt's claims best, and the adherence of every clip."""

    best: int
    scores: tuple[float, ...]


def rank(
    answerer: QuestionAnswerer,
    prompt: str,
    waves: Sequence[Samples],
    rate: int,
    check: Check = lambda: None,
) -> Ranking:
    """Rank clips of one prompt, mono at `rate` Hz; `check` is called before every piece of work, and may raise.

    Raises:
        RequestError: the prompt claims nothing, or a clip is too short.
    """
    claims = rankable_claims(prompt, answerer.manifest.questions)
    target = answerer.shape.sampling_rate
    scores = tuple(adherence(answerer, resampled(wave, rate, target), claims, check) for wave in waves)
    return Ranking(int(np.argmax(scores)), scores)
