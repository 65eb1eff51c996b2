"""Yes or no about an attribute, by the probabilities of its values.

Small models recognize the value but answer yes or no at chance, so the answer is computed from the values'
probabilities.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from tinymusician.runtime.audio_lm_bundle import AttributeQuestion
from tinymusician.runtime.value_names import named_values

_WRITTEN = re.compile(r"(?P<value>.+), so (yes|no)")
_UNDECIDED = re.compile(
    r"\b(than|not|never|neither|nor|without|but|except|instead|rather|unlikely|hardly|wrong|false|only)\b|n't\b"
    r"|(?<!or )\bno\b(?!\s*[?.!]*\s*$)",  # but `yes or no`, and `no` at the end
    re.IGNORECASE,
)
"""Words that compare or negate, of which this module understands nothing more."""
_BOTH = re.compile(r"\b(and|both)\b", re.IGNORECASE)


class NamedValues(NamedTuple):
    """Values of an attribute that a question names."""

    attribute: AttributeQuestion
    values: tuple[str, ...]


class YesNoQuestion(NamedTuple):
    """The attribute that a question of yes or no is about, and the values that must hold, of it and of others.

    Of each of the `named`, one of the values must hold. Without any, the question cannot be decided by values; only the
    attribute's own question can be answered.
    """

    attribute: AttributeQuestion
    named: tuple[NamedValues, ...]


def yes_no_question(question: str, written: str, attributes: Sequence[AttributeQuestion]) -> YesNoQuestion | None:
    """What a question of yes or no is about, if the model has written `VALUE, so yes` or `no`; None otherwise.

    The value tells the attribute, or one that follows from it: `A minor` is about the key or the mode. A question that
    compares or negates, that names all values or none, or wants two of one attribute at once, is not decided by values.
    Other attributes count where prompts state them: `a fast fiddle` is about tempo and instrument.
    """
    if (parts := _WRITTEN.fullmatch(written)) is None:
        return None
    about = [attribute for attribute in attributes if parts["value"] in (*attribute.options, *_finer(attribute))]
    if _UNDECIDED.search(question) is None:
        for attribute in about:
            if 0 < len(values := named_values(question, attribute)) < len(attribute.options):
                named = (NamedValues(attribute, values), *_of_others(question, attribute, attributes))
                if _BOTH.search(question) is None or all(len(one.values) == 1 for one in named):
                    return YesNoQuestion(attribute, named)
    return next((YesNoQuestion(one, ()) for one in about if parts["value"] in one.options), None)


def _of_others(
    question: str, attribute: AttributeQuestion, attributes: Sequence[AttributeQuestion]
) -> list[NamedValues]:
    """What a question names of other attributes that prompts state, and that neither follow from this one nor it."""
    finer = attribute.finer.attribute if attribute.finer else None
    others = [one for one in attributes if one.in_prompts and one.attribute not in (attribute.attribute, finer)]
    named = [NamedValues(other, named_values(question, other)) for other in others]
    return [one for one in named if one.values]


def _finer(attribute: AttributeQuestion) -> list[str]:
    """The finer attribute's values from which the attribute's follow."""
    return [value for values in attribute.finer.values.values() for value in values] if attribute.finer else []
