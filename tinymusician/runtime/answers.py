"""Probabilities of a question's options, from the likelihoods of the texts that a model may write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tinymusician.runtime.prompts import CANNOT_TELL
from tinymusician.runtime.softmax import softmax

Floats = npt.NDArray[np.float32]


class TokenizedText(Protocol):
    """The tokens of a text."""

    ids: list[int]


class TextTokenizer(Protocol):
    """What is used of a tokenizer of the `tokenizers` library."""

    def encode_batch(self, texts: Sequence[str]) -> Sequence[TokenizedText]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class OptionProbabilities(NamedTuple):
    """The probability of each option among the options, and that of "cannot tell" against all of them."""

    options: tuple[float, ...]
    cannot_tell: float

    @property
    def choice(self) -> int:
        """The most probable option."""
        return int(np.argmax(self.options))


def scored_tokens(tokenizer: TextTokenizer, options: Sequence[str], end: int) -> list[list[int]]:
    """The tokens of the options' texts, and last those of "cannot tell", each ended by the token `end`."""
    encoded = tokenizer.encode_batch([f" {text}" for text in (*options, CANNOT_TELL)])
    return [[*each.ids, end] for each in encoded]


def summed(probabilities: Sequence[float], members: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """The sums of the probabilities of groups, given by the numbers of their members; together they are one.

    Groups with a member in common share its probability equally.
    """
    groups = Counter(number for numbers in members for number in numbers)
    sums = [sum(probabilities[number] / groups[number] for number in numbers) for numbers in members]
    total = sum(sums)
    return tuple(each / total for each in sums) if total else (1 / len(sums),) * len(sums)


def option_probabilities(logs: Floats) -> OptionProbabilities:
    """From the log-likelihoods of the options' texts and, last, of "cannot tell", [options + 1]."""
    return OptionProbabilities(tuple(softmax(logs[:-1]).tolist()), float(softmax(logs)[-1]))
