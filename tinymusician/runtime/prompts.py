"""The text of a question as a model reads it, and the forms of its answers."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

LETTERS = "ABCDEFGH"
MAX_LETTERS = len(LETTERS)
ANSWER_PREFIX = "The correct answer is:"
MIN_SECONDS, MAX_SECONDS = 0.5, 600.0
"""The length of audio that a question may be about."""
MAX_NEW_TOKENS = 32
"""Tokens of an answer that a model writes, at most."""
CANNOT_TELL = "cannot tell"
"""The answer where there is no music to judge: silence or noise."""


def build_prompt(text: str, options: Sequence[str] = ()) -> str:
    """A question as a model reads it; with options, in MuChoMusic's form (mulab-mir/muchomusic, prepare_prompts)."""
    if not options:
        return f"Question: {text}\n Answer:"
    listed = " ".join(option_text(options, index) for index in range(len(options)))
    return f"Question: {text}\n Options: {listed} \n {ANSWER_PREFIX}"


def option_text(options: Sequence[str], index: int) -> str:
    """An option as it stands in the prompt, such as `(B) flute`."""
    return f"({LETTERS[index]}) {options[index]}"


def normalize_text(text: str) -> str:
    """A text without what cannot be seen: equal for texts that look alike, whatever their case and spaces."""
    seen = (one for one in unicodedata.normalize("NFKC", text) if unicodedata.category(one) != "Cf")
    return " ".join("".join(seen).casefold().split())
