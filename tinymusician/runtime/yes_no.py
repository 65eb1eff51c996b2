"""Yes or no about an attribute, by the probabilities of its values.

A small language model that is asked whether a fiddle is a flute recognizes the fiddle, and says yes half of the time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from tinymusician.runtime.audio_lm_bundle import AttributeQuestion
from tinymusician.runtime.value_names import named_values

_WRITTEN = re.compile(r"(?P<value>.+), so (yes|no)")
_COMPARISON = re.compile(r"\b(than|not|never|neither|nor|without)\b|n't\b", re.IGNORECASE)


class YesNoQuestion(NamedTuple):
    """The attribute that a question of yes or no is about, and the values for which the answer is yes.

    Without values the question cannot be decided by them; only the attribute's own question can be answered.
    """

    attribute: AttributeQuestion
    values: tuple[str, ...]


def yes_no_question(question: str, written: str, attributes: Sequence[AttributeQuestion]) -> YesNoQuestion | None:
    """What a question of yes or no is about, if the model has written `VALUE, so yes` or `no`; None otherwise.

    The value tells the attribute, or one that follows from it: `A minor` is about the key or the mode. A question that
    compares or negates, or that names all values or none, has no values.
    """
    if (parts := _WRITTEN.fullmatch(written)) is None:
        return None
    about = [attribute for attribute in attributes if parts["value"] in (*attribute.options, *_finer(attribute))]
    if _COMPARISON.search(question) is None:
        for attribute in about:
            if 0 < len(values := named_values(question, attribute)) < len(attribute.options):
                return YesNoQuestion(attribute, values)
    return next((YesNoQuestion(one, ()) for one in about if parts["value"] in one.options), None)


def _finer(attribute: AttributeQuestion) -> list[str]:
    """The finer attribute's values from which the attribute's follow."""
    return [value for values in attribute.finer.values.values() for value in values] if attribute.finer else []
