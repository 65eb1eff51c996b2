"""The values of an attribute that a text names.

Case is ignored, but for names that begin with the word A: `a minor key` is a key in minor, and `A minor` may begin a
sentence about one. So `A minor` counts inside a text, or before a comma, a question mark or the end; `a minor` before
the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tinymusician.runtime.audio_lm_bundle import AttributeQuestion

_ACCIDENTALS = {"sharp": "#", "flat": "b", "♯": "#", "♭": "b"}
_ACCIDENTAL_WORDS = re.compile(r"\b([a-g])[\s-]?(sharp|flat|♯|♭)", re.IGNORECASE)
_START, _END = r"(?<![\w#'])", r"(?![\w#])"


def named_values(text: str, attribute: AttributeQuestion) -> tuple[str, ...]:
    """The attribute's values whose names or synonyms stand in a text as whole words, the longest first; none twice.

    A name inside a longer one does not count: `rises, then falls` is not `falls`.
    """
    names = {**{option: option for option in attribute.options}, **attribute.synonyms}
    values, rest = [], with_accidentals(text.strip())
    for name in sorted(names, key=len, reverse=True):
        without = rest
        for pattern in _patterns(name):
            without = pattern.sub(" ", without)
        if without != rest:
            rest = without
            values.append(names[name])
    return tuple(dict.fromkeys(values))


def compared_attribute(text: str, attributes: Sequence[AttributeQuestion]) -> AttributeQuestion | None:
    """The one attribute of which a text names several values, as `Minor or major?`; None if there is not one alone."""
    compared = [attribute for attribute in attributes if len(named_values(text, attribute)) > 1]
    return compared[0] if len(compared) == 1 else None


def with_accidentals(text: str) -> str:
    """A text with the signs of accidentals after the names of notes: `F#` for `F sharp`."""
    return _ACCIDENTAL_WORDS.sub(lambda match: match[1] + _ACCIDENTALS[match[2].lower()], text)


def _patterns(name: str) -> list[re.Pattern[str]]:
    words = f"{_START}{re.escape(name)}"
    if name != "A" and not name.startswith("A "):
        return [re.compile(words + _END, re.IGNORECASE)]
    exact = (rf"(?<=\s){words}{_END}", rf"{words}(?=\s*(?:[,;:.?!]|$))")
    return [*map(re.compile, exact), re.compile(rf"{words}(?=[\s.?!]*$)", re.IGNORECASE)]
