"""Codec tokens of captioned clips: the training data of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

BLOCK_ROWS, WINDOW_ROWS = 32, 4096
"""Rows of a shard of signals, and rows that are shuffled with each other."""


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


def rows_of_step(
    step: int, part: int, parts: int, batch_size: int, count: int, seed: int, window: int | None = None
) -> npt.NDArray[np.int64]:
    """The rows of `count` in one of the `parts` of a step: every epoch has a new order. See `epoch_order`."""
    first = (step * parts + part) * batch_size
    positions = np.arange(first, first + batch_size)
    epochs = positions // count
    return np.array(
        [
            epoch_order(seed, int(epoch), count, window)[position % count]
            for epoch, position in zip(epochs, positions, strict=True)
        ]
    )


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int, window: int | None) -> npt.NDArray[np.int64]:
    """The order of an epoch, kept for its steps: a permutation of the rows.

    With a `window`, a multiple of `BLOCK_ROWS`, a larger set is cut into blocks of `BLOCK_ROWS`, as its shards of
    signals are. The blocks are permuted, and then the rows of each `window`. So each shard is read during a part of the
    epoch only, whatever the size of the set.
    """
    random = np.random.default_rng((seed, epoch))
    if window is None or count <= window:
        order = random.permutation(count)
    else:
        blocks = random.permutation(-(-count // BLOCK_ROWS))
        rows = (blocks[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).ravel()
        rows = rows[rows < count]
        order = np.concatenate([random.permutation(rows[at : at + window]) for at in range(0, count, window)])
    order.flags.writeable = False
    return order
