"""Maps a user's options to the attribute values of the training: `Violin` to fiddle, `strings` to bowed and plucked.

A small model has only the words of its training; other words for the same value are as good as random.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from tinymusician.runtime.audio_lm_bundle import AttributeQuestion
from tinymusician.runtime.prompts import normalize_text
from tinymusician.runtime.value_names import with_accidentals

_ARTICLE, _END = re.compile(r"^(an?|the) "), re.compile(r"s?[.!]*$")


class OptionValues(NamedTuple):
    """The texts that the model chooses between, and for each option the numbers of those that it covers.

    `attribute` is what most of the options are values of, or None; `is_complete` says that all of them are.
    """

    texts: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    attribute: AttributeQuestion | None
    is_complete: bool


def option_values(options: Sequence[str], attributes: Sequence[AttributeQuestion]) -> OptionValues:
    """The values of the attribute that most options name; other options stay as they are.

    Values of a coarser attribute are several of a finer one: of `strings` and `flute`, strings are fiddle and banjo.
    """
    named = [(attribute, [_values(option, attribute, attributes) for option in options]) for attribute in attributes]
    direct = {attribute.attribute: sum(bool(_named(each, attribute)) for each in options) for attribute in attributes}
    attribute, values = max(
        named, key=lambda one: (sum(map(bool, one[1])), direct[one[0].attribute]), default=(None, [()] * len(options))
    )
    texts = [each or (option,) for each, option in zip(values, options, strict=True)]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(text for each in texts for text in each))}
    members = tuple(tuple(numbers[text] for text in each) for each in texts)
    count = sum(map(bool, values))
    return OptionValues(
        tuple(numbers), members, attribute if 2 * count > len(options) else None, 0 < count == len(options)
    )


def _values(option: str, attribute: AttributeQuestion, attributes: Sequence[AttributeQuestion]) -> tuple[str, ...]:
    """The attribute's values that an option covers, also as a value of a coarser attribute; none of another word."""
    if values := _named(option, attribute):
        return values
    for coarse in attributes:
        if coarse.finer is not None and coarse.finer.attribute == attribute.attribute:
            finer = coarse.finer.values
            if values := tuple(one for value in _named(option, coarse) for one in finer.get(value, ())):
                return tuple(one for one in values if one in attribute.options)
    return ()


def _named(option: str, attribute: AttributeQuestion) -> tuple[str, ...]:
    """The attribute's values that an option names, whatever its case, article, plural and last punctuation."""
    singles = {**{value: value for value in attribute.options}, **attribute.synonyms}
    names = {**{name: (value,) for name, value in singles.items()}, **attribute.other_names}
    by_text = {normalize_text(name): values for name, values in names.items()}
    plain = normalize_text(with_accidentals(option))
    for text in (plain, _ARTICLE.sub("", plain), _END.sub("", _ARTICLE.sub("", plain))):
        if text in by_text:
            return by_text[text]
    return ()
