"""Answers that follow from a finer attribute: whether music is minor, by the probabilities of all minor keys.

A model that tells 24 keys apart is asked for the key, and the keys of each mode are summed. That is more often right
than its own word for the mode, which is no linear function of the audio's vectors, and never contradicts its key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tinymusician.runtime.audio_lm_bundle import AttributeQuestion


class FinerQuestion(NamedTuple):
    """The question that decides between some options, and for each of them the numbers of its answers."""

    question: AttributeQuestion
    members: tuple[tuple[int, ...], ...]


def finer_question(options: Sequence[str], questions: Sequence[AttributeQuestion]) -> FinerQuestion | None:
    """The question that decides between options, all of which are values of an attribute with a finer one; or None."""
    for coarse in questions if options else ():
        if coarse.finer is None:
            continue
        members = {value.casefold(): keys for value, keys in coarse.finer.values.items()}
        plain = [option.strip().casefold() for option in options]
        fine = next((one for one in questions if one.attribute == coarse.finer.attribute), None)
        if fine is not None and all(option in members for option in plain):
            answers = fine.options
            numbers = (tuple(answers.index(key) for key in members[option] if key in answers) for option in plain)
            return FinerQuestion(fine, tuple(numbers))
    return None
