"""Maps a user's options to the attribute values of the training: `Violin` to fiddle, `strings` to bowed and plucked.

A small model has only the words of its training; other words for the same value are as good as random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tinymusician.runtime.audio_lm_bundle import AttributeQuestion
from tinymusician.runtime.prompts import normalize_text
from tinymusician.runtime.value_names import with_accidentals


class OptionValues(NamedTuple):
    """The texts that the model chooses between, and for each option the numbers of those that it covers.

    `attribute` is what most options are about, or None if they are values of none.
    """

    texts: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    attribute: AttributeQuestion | None


def option_values(options: Sequence[str], attributes: Sequence[AttributeQuestion]) -> OptionValues:
    """The values of the attribute that most options name; other options stay as they are.

    So do all of them if two cover one value, as `fiddle` and `violin` do.
    """
    named = [(attribute, [_values(option, attribute) for option in options]) for attribute in attributes]
    attribute, values = max(named, key=lambda one: sum(map(bool, one[1])), default=(None, [()] * len(options)))
    texts = [each or (option,) for each, option in zip(values, options, strict=True)]
    flat = tuple(text for each in texts for text in each)
    if len(set(flat)) < len(flat):
        return OptionValues(tuple(options), tuple((index,) for index in range(len(options))), None)
    members, start = [], 0
    for each in texts:
        members.append(tuple(range(start, start + len(each))))
        start += len(each)
    return OptionValues(flat, tuple(members), attribute if any(values) else None)


def _values(option: str, attribute: AttributeQuestion) -> tuple[str, ...]:
    """The attribute's values that an option covers; none if it is another word."""
    singles = {**{value: value for value in attribute.options}, **attribute.synonyms}
    names = {**{name: (value,) for name, value in singles.items()}, **attribute.other_names}
    plain = normalize_text(with_accidentals(option))
    return next((values for name, values in names.items() if normalize_text(name) == plain), ())
