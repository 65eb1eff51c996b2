"""What a prompt claims about its music, and how probable it is that a clip keeps it (AQAScore).

A prompt claims the value of an attribute if it names one of the answers to the attribute's question, or a synonym. The
score of a claim is the probability of that answer among all answers (arXiv 2601.14728 takes that of "yes").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tinymusician.errors import RequestError
from tinymusician.runtime.audio_lm_bundle import AttributeQuestion
from tinymusician.runtime.value_names import named_values

if TYPE_CHECKING:
    from tinymusician.runtime.question_answerer import AudioState, Check, QuestionAnswerer, Samples

_SMALLEST = 1e-6
_NEGATED = re.compile(r"\b(?:not|no|never|without|except)\b[^,;.]*|\w+n't\b[^,;.]*", re.IGNORECASE)


@dataclass(frozen=True)
class PromptClaim:
    """The value of an attribute that a prompt names: one of the answers to its question."""

    question: AttributeQuestion
    value: str


def claims_of(prompt: str, questions: Sequence[AttributeQuestion]) -> tuple[PromptClaim, ...]:
    """The claims of a prompt, at most one of each attribute; a prompt that names two values of one claims neither.

    What follows a negation, up to the next comma or full stop, claims nothing.
    """
    said = _NEGATED.sub(" ", prompt)
    named = [(question, named_values(said, question)) for question in claimable(questions)]
    return tuple(PromptClaim(question, values[0]) for question, values in named if len(values) == 1)


def claimable(questions: Sequence[AttributeQuestion]) -> list[AttributeQuestion]:
    """The questions about attributes that prompts state."""
    return [question for question in questions if question.in_prompts]


def claim_probability(answerer: QuestionAnswerer, audio: AudioState, claim: PromptClaim) -> float:
    """P(claimed value) · (1 - P(cannot tell)), so silence scores near 0."""
    answer = answerer.choose(audio, claim.question.text, claim.question.options)
    (value,) = (option.probability for option in answer.options if option.text == claim.value)
    return value * (1 - answer.cannot_tell)


def adherence(answerer: QuestionAnswerer, wave: Samples, claims: Sequence[PromptClaim], check: Check) -> float:
    """The geometric mean of the claims' probabilities. `wave` has the bundle's rate."""
    audio = answerer.read(wave, check)
    logs = [np.log(max(claim_probability(answerer, audio, claim), _SMALLEST)) for claim in claims]
    return float(np.exp(np.mean(logs)))


def rankable_claims(prompt: str, questions: Sequence[AttributeQuestion]) -> tuple[PromptClaim, ...]:
    """The claims by which clips of a prompt can be ranked.

    Raises:
        RequestError: the prompt claims nothing.
    """
    if claims := claims_of(prompt, questions):
        return claims
    names = "; ".join(f"{q.attribute} ({', '.join(q.options[:3])}, …)" for q in claimable(questions))
    raise RequestError(f"best_of: the prompt names nothing that clips can be ranked by: {names}", "best_of")
