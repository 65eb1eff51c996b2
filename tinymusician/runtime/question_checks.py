"""The limits of questions about audio, which serve/page/device/question_checks.js follows."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from tinymusician.errors import RequestError
from tinymusician.runtime.answers import TextTokenizer
from tinymusician.runtime.prompts import CANNOT_TELL, MAX_LETTERS, MAX_SECONDS, MIN_SECONDS, normalize_text

MAX_QUESTION_CHARACTERS, MAX_OPTIONS, MAX_OPTION_CHARACTERS = 300, 50, 60
_MAX_PROMPT_TOKENS, _MAX_OPTION_TOKENS = 400, 2000
"""Tokens of a question with its listed options, and of all options: a character may take several."""


def check_length(seconds: float) -> None:
    """Check the length of audio.

    Raises:
        RequestError: it is too short or too long.
    """
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise RequestError(f"audio: lasts {seconds:g} s; {MIN_SECONDS:g} to {MAX_SECONDS:g} s are allowed", "audio")


def check_question(question: str, options: Sequence[str]) -> None:
    """Check a question and its options before anything is loaded.

    Raises:
        RequestError: the question is empty or too long, or the options are not several different texts.
    """
    if not normalize_text(question):
        raise RequestError("question: is empty", "question")
    if any(unicodedata.category(character) in ("Cc", "Cs") for text in (question, *options) for character in text):
        raise RequestError(
            "question and options: have control or broken characters; one line of text each is needed", "question"
        )
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise RequestError(
            f"question: {len(question)} characters; at most {MAX_QUESTION_CHARACTERS} are allowed", "question"
        )
    if len(options) == 1 or len(options) > MAX_OPTIONS:
        raise RequestError(f"options: {len(options)}; 2 to {MAX_OPTIONS} are allowed, or none", "options")
    folded = [normalize_text(option) for option in options]
    if "" in folded:
        raise RequestError("options: one is empty", "options")
    if long := next((option for option in options if len(option) > MAX_OPTION_CHARACTERS), None):
        raise RequestError(
            f"options: one has {len(long)} characters; at most {MAX_OPTION_CHARACTERS} are allowed", "options"
        )
    if CANNOT_TELL in folded:
        raise RequestError(f"options: {CANNOT_TELL!r} is always a possible answer; leave it out", "options")
    if twice := next((text for index, text in enumerate(folded) if text in folded[:index]), None):
        raise RequestError(f"options: {twice!r} is there twice", "options")


def check_tokens(tokenizer: TextTokenizer, question: str, options: Sequence[str]) -> None:
    """Check the number of tokens of a question and its options, which depends on their script.

    Raises:
        RequestError: there are too many.
    """
    sizes = [len(each.ids) for each in tokenizer.encode_batch([question, *options])]
    listed = sum(sizes if len(options) <= MAX_LETTERS else sizes[:1])
    if listed > _MAX_PROMPT_TOKENS or sum(sizes[1:]) > _MAX_OPTION_TOKENS:
        raise RequestError(
            f"question and options: take {sum(sizes)} tokens; at most {_MAX_PROMPT_TOKENS} are allowed, or "
            f"{_MAX_OPTION_TOKENS} of more than {MAX_LETTERS} options",
            "options" if options else "question",
        )
