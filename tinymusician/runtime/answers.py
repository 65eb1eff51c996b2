"""Probabilities of a question's options, from the logits of the tokens that begin the possible answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tinymusician.runtime.prompts import CANNOT_TELL, LETTERS

Floats = npt.NDArray[np.float32]


class TextTokenizer(Protocol):
    """What is used of a tokenizer of the `tokenizers` library."""

    def encode_batch(self, texts: Sequence[str]) -> Sequence[TokenizedText]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class TokenizedText(Protocol):
    """The tokens of a text."""

    ids: list[int]


class OptionProbabilities(NamedTuple):
    """The probability of each option among the options, and that of "cannot tell" against all of them."""

    options: tuple[float, ...]
    cannot_tell: float

    @property
    def choice(self) -> int:
        """The most probable option."""
        return int(np.argmax(self.options))


class Candidates(NamedTuple):
    """The tokens by which answers differ: the options' common `prefix`, and the token of each after it.

    `cannot_tell` is the first token of that answer, where the options begin with `first`.
    """

    prefix: tuple[int, ...]
    options: tuple[int, ...]
    first: tuple[int, ...]
    cannot_tell: int


def candidates(tokenizer: TextTokenizer, options: Sequence[str]) -> Candidates:
    """The first tokens of the possible answers: the options' letters, or yes and no if there are no options."""
    answers = [f"({letter})" for letter in LETTERS[: len(options)]] or ["yes", "no"]
    texts = [f" {answer}" for answer in (*answers, CANNOT_TELL)]
    *ids_of_options, unable = (encoded.ids for encoded in tokenizer.encode_batch(texts))
    length = 0
    while len({ids[length] for ids in ids_of_options}) == 1:
        length += 1
    following = tuple(ids[length] for ids in ids_of_options)
    first = tuple({ids[0]: 0 for ids in ids_of_options})
    return Candidates(tuple(ids_of_options[0][:length]), following, first, unable[0])


def softmax(logits: Floats) -> Floats:
    """Probabilities over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True), np.float32)


def option_probabilities(first: Floats, following: Floats, answers: Candidates) -> OptionProbabilities:
    """Probabilities from the logits after the prompt, and after prompt and prefix, both [vocabulary]."""
    options = softmax(following[list(answers.options)])
    joint = softmax(first[[*answers.first, answers.cannot_tell]])
    return OptionProbabilities(tuple(options.tolist()), float(joint[-1]))
