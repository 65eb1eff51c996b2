"""The tokenizer of a language model that is trained from scratch, and token sequences of questions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as TokenizersTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from tinymusician.runtime.answers import TextTokenizer
from tinymusician.runtime.prompts import LETTERS

END, PAD = "<end>", "<pad>"
END_ID, PAD_ID = 0, 1
"""The ids of both in a tokenizer from here. Rows are padded after their end, so any id serves for that."""


class TokenizedQuestions(NamedTuple):
    """Of each question, the ids of its prompt and those of its answer with the end token."""

    prompts: list[npt.NDArray[np.int64]]
    answers: list[npt.NDArray[np.int64]]


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> TokenizersTokenizer:
    """A byte-level BPE; every option's letter, with its brackets, is one token, ids 2 to 9."""
    tokenizer = TokenizersTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [END, PAD, *(f"({letter})" for letter in LETTERS)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokenize(tokenizer: TextTokenizer, end: int, prompts: Sequence[str], answers: Sequence[str]) -> TokenizedQuestions:
    """The tokens of prompts and of the answers to them; a space begins an answer, and the token `end` ends it."""
    prompt_ids = [np.array(encoded.ids, np.int64) for encoded in tokenizer.encode_batch(prompts)]
    spaced = tokenizer.encode_batch([f" {answer}" for answer in answers])
    return TokenizedQuestions(prompt_ids, [np.array([*encoded.ids, end], np.int64) for encoded in spaced])
