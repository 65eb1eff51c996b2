"""Codec tokens of captioned clips: the training data of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class EncodedCaptions(Protocol):
    """`input_ids` and `attention_mask`, [N, L]."""

    def __getitem__(self, name: str) -> Any: ...


class CaptionTokenizer(Protocol):
    """Encodes captions: transformers' fast tokenizer."""

    def __call__(self, text: Sequence[str], **options: object) -> EncodedCaptions: ...


@dataclass(frozen=True)
class TokenDataset:
    """`codes` int16 [N, K, T]; `text_ids` and `text_mask` int64 [N, L]."""

    codes: npt.NDArray[np.int16]
    text_ids: npt.NDArray[np.int64]
    text_mask: npt.NDArray[np.int64]

    def select(self, rows: npt.NDArray[np.int64]) -> TokenDataset:
        """The set of these rows, in this order."""
        return TokenDataset(self.codes[rows], self.text_ids[rows], self.text_mask[rows])


def tokenize_captions(
    tokenizer: CaptionTokenizer, captions: Sequence[str]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Token ids and mask [N, L], padded to the longest caption and a multiple of 8.

    So a text encoder's products have a multiple of 8 rows for any batch, and give each text the same states.
    """
    encoded = tokenizer(captions, padding=True, pad_to_multiple_of=8, truncation=True, return_tensors="np")
    return encoded["input_ids"].astype(np.int64), encoded["attention_mask"].astype(np.int64)


def rows_of_step(step: int, part: int, parts: int, batch_size: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """The rows of `count` in one of the `parts` of a step: every epoch is a new permutation, split in order."""
    first = (step * parts + part) * batch_size
    positions = np.arange(first, first + batch_size)
    epochs = positions // count
    return np.array(
        [_order(seed, int(epoch), count)[position % count] for epoch, position in zip(epochs, positions, strict=True)]
    )


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """The permutation of an epoch, kept for its steps: of a million rows it takes 20 ms."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    order.flags.writeable = False
    return order
