"""Yes or no about an attribute, by the probabilities of its values.

A small language model that was asked whether this is a flute hears that it is a fiddle, and says yes half of the time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from tinymusician.runtime.audio_lm_bundle import AttributeQuestion

_WRITTEN = re.compile(r"(?P<value>.+), so (yes|no)")


class NamedValues(NamedTuple):
    """The attribute that a question of yes or no is about, and those of its values that the question names."""

    attribute: AttributeQuestion
    values: tuple[str, ...]


def named_values(question: str, written: str, attributes: Sequence[AttributeQuestion]) -> NamedValues | None:
    """What a question of yes or no names, if the model has written `VALUE, so yes` or `no`; or None.

    The value that it hears tells the attribute, or one that follows from it: `A minor` is about the key or the mode.
    """
    if (parts := _WRITTEN.fullmatch(written)) is None:
        return None
    for attribute in attributes:
        finer = () if attribute.finer is None else [key for keys in attribute.finer.values.values() for key in keys]
        if parts["value"] in (*attribute.options, *finer) and (values := _named(question, attribute)):
            return NamedValues(attribute, values)
    return None


def _named(question: str, attribute: AttributeQuestion) -> tuple[str, ...]:
    """The values of an attribute that a question names, or their synonyms, the longest first; none twice."""
    names = {**{option: option for option in attribute.options}, **attribute.synonyms}
    values, rest = [], question
    for name in sorted(names, key=len, reverse=True):
        flags = re.IGNORECASE if name == name.lower() else 0  # `a minor key` does not name the key of A minor
        pattern = re.compile(rf"(?<![\w#]){re.escape(name)}(?![\w#])", flags)
        if pattern.search(rest):
            rest = pattern.sub(" ", rest)
            values.append(names[name])
    return tuple(dict.fromkeys(values))
