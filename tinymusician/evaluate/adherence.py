"""Adherence: whether clips contain what their prompts claim, by a judge that answers questions.

    the probability of the claimed answer, mean over the clips whose prompt claims something of the attribute

Source: AQAScore (arXiv 2601.14728), which asks an audio language model and takes the probability of "yes". The judge
errs, too: its scores of the real clips, and of the real clips after the codec, are the most that a model can reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tinymusician.evaluate.bootstrap import mean_interval, proportion_interval
from tinymusician.evaluate.clip_embeddings import Floats, Indices
from tinymusician.evaluate.results import ClaimScore
from tinymusician.runtime.audio_lm_bundle import AttributeQuestion
from tinymusician.runtime.prompt_claims import claims_of


def adherence_scores(
    probabilities: Mapping[str, Floats],
    indices: Indices,
    prompts: Sequence[str],
    questions: Sequence[AttributeQuestion],
    seed: int = 0,
) -> dict[str, ClaimScore]:
    """By attribute, how far clips keep what their prompts claim; attributes that no prompt names are left out.

    `probabilities` are the judge's, [N, options] by attribute, of the clips `indices` [N] of `prompts`.
    """
    values: dict[str, list[float]] = {}
    is_first: dict[str, list[bool]] = {}
    for row, index in enumerate(indices):
        for claim in claims_of(prompts[index], questions):
            name, options = claim.question.attribute, probabilities[claim.question.attribute][row]
            value = options[claim.question.options.index(claim.value)]
            values.setdefault(name, []).append(float(value))
            is_first.setdefault(name, []).append(bool(value == options.max()))
    return {
        name: ClaimScore(
            clips=len(values[name]),
            probability=mean_interval(values[name], seed),
            top=proportion_interval(np.array(is_first[name])),
        )
        for name in (question.attribute for question in questions)
        if name in values
    }
