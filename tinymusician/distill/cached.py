"""Cached teacher signals: the teacher's logits on rows of a sequence set, in float16, read back row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from tinymusician.data.shards import ShardSet
from tinymusician.data.tokens import TokenSet
from tinymusician.distill.signals import Rows, Signals, SignalSource, Target, sequences_of

SHARD_ROWS = 32


def shard_count(rows: int) -> int:
    """How many shards hold the signals of `rows` rows."""
    return -(-rows // SHARD_ROWS)


def signal_shard(source: SignalSource, index: int, rows: int, batch_size: int) -> dict[str, Any]:
    """The logits of one shard's rows, float16 [N, passes, K, S, V]; a pass a row, or two for the conditional target."""
    own = np.arange(index * SHARD_ROWS, min((index + 1) * SHARD_ROWS, rows))
    parts = []
    for start in range(0, len(own), batch_size):
        piece = own[start : start + batch_size]
        logits = source(piece).logits.cpu()
        passes = len(logits) // len(piece)
        parts.append(logits.view(passes, len(piece), *logits.shape[1:]).transpose(0, 1).half().numpy())
    return {"logits": np.concatenate(parts)}


class CachedTeacher:
    """A signal source that reads shards, fetching each into a local folder when it is first needed."""

    def __init__(self, shards: ShardSet, tokens: TokenSet, target: Target, pad: int, cache: Path, device: str) -> None:
        self._shards, self._tokens, self._target = shards, tokens, target
        self._pad, self._cache, self._device = pad, cache, device

    def __call__(self, rows: Rows) -> Signals:
        sequences = sequences_of(self._tokens, rows, self._target, self._pad)
        logits = torch.stack([self._row(int(row)) for row in rows], dim=1).flatten(0, 1)
        moved = type(sequences)(*(part.to(self._device) for part in sequences))
        return Signals(moved, logits.to(self._device))

    def _row(self, row: int) -> torch.Tensor:
        """One row's logits [passes, K, S, V]; only its bytes are read from the shard's file."""
        index, place = divmod(row, SHARD_ROWS)
        with safe_open(self._shards.fetch(index, self._cache), framework="pt") as file:
            logits: torch.Tensor = file.get_slice("logits")[place]
        return logits
