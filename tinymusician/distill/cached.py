"""Cached teacher signals: the teacher's logits on rows of a sequence set, in shards, read row by row.

A dense shard holds logits minus their maximum, in float16, which is most precise near 0, where the probability mass is.
A sparse shard holds the `top` most likely codes of every position and the mass of all others, which is spread evenly
over them on reading. At a temperature other than 1, the others' mass is that of equally likely codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor

from tinymusician.data.shards import Arrays, ShardCache
from tinymusician.data.tokens import BLOCK_ROWS, TokenDataset
from tinymusician.distill.signals import Rows, SignalSource, Target, TeacherSignals, sequences_of

SHARD_ROWS = BLOCK_ROWS
FORMAT = "less their largest, float16"


def shard_count(rows: int) -> int:
    """The number of shards of the signals of `rows` rows."""
    return -(-rows // SHARD_ROWS)


def signal_shard(source: SignalSource, index: int, rows: int, batch_size: int, top: int | None = None) -> Arrays:
    """One shard's signals [N, passes, K, S, …]: one pass per row, or two for the conditional target. See `pack`."""
    shard_rows = np.arange(index * SHARD_ROWS, min((index + 1) * SHARD_ROWS, rows))
    parts = []
    for start in range(0, len(shard_rows), batch_size):
        piece = shard_rows[start : start + batch_size]
        logits = source(piece).logits
        passes = len(logits) // len(piece)
        parts.append(pack(logits.view(passes, len(piece), *logits.shape[1:]).transpose(0, 1), top))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def pack(logits: Tensor, top: int | None) -> Arrays:
    """Logits [..., V] as a shard stores them, computed on their device.

    Dense: `logits` [..., V]. Sparse: the `codes` [..., top] and `values` [..., top] of the most likely codes, and the
    logarithm of the `rest` [...], the sum over all others of exp(value).
    """
    centred = logits.float() - logits.float().amax(-1, keepdim=True)
    if top is None:
        return {"logits": _half(centred)}
    values, codes = centred.topk(top, -1)
    rest = centred.scatter(-1, codes, -torch.inf).logsumexp(-1)
    return {"codes": codes.cpu().numpy().astype(np.uint16), "values": _half(values), "rest": _half(rest)}


def _half(values: Tensor) -> npt.NDArray[np.float16]:
    """In float16, clamped to its smallest number."""
    return values.clamp(min=torch.finfo(torch.float16).min).half().cpu().numpy()


def unpack(arrays: dict[str, Tensor], vocabulary: int) -> Tensor:
    """Logits [..., V], up to a constant, from a shard's arrays."""
    if "logits" in arrays:
        return arrays["logits"]
    values = arrays["values"].float()
    others = vocabulary - values.shape[-1]
    each = arrays["rest"].float()[..., None] - math.log(max(others, 1))
    logits = each.expand(*values.shape[:-1], vocabulary).clone()
    return logits.scatter_(-1, arrays["codes"].long(), values)


class CachedTeacher:
    """The requests of a `PrefetchingSource`, from shards: a thread reads them, and downloads them when first needed."""

    def __init__(
        self,
        shards: ShardCache,
        tokens: TokenDataset,
        target: Target,
        vocabulary: int,
        cache: Path,
        device: str,
        make: Callable[[int], Arrays] | None,
    ) -> None:
        """`make` computes a damaged shard again; without it a damaged shard is an error."""
        self._shards, self._tokens, self._target = shards, tokens, target
        self._vocabulary, self._cache, self._device, self._make = vocabulary, cache, device, make
        here = partial(torch.cuda.set_device, torch.cuda.current_device()) if device == "cuda" else None
        self._reader = ThreadPoolExecutor(1, initializer=here)  # a thread does not know which GPU is this worker's

    def request(self, rows: Rows) -> Callable[[], TeacherSignals]:
        """Start reading the signals of these rows."""
        reading = self._reader.submit(self._read, rows)

        def wait() -> TeacherSignals:
            sequences, logits, _ = reading.result()
            moved = type(sequences)(*(part.to(self._device) for part in sequences))
            return TeacherSignals(moved, logits.to(self._device))

        return wait

    def _read(self, rows: Rows) -> TeacherSignals:
        sequences = sequences_of(self._tokens, rows, self._target, self._vocabulary)
        logits = torch.stack([self._row(int(row)) for row in rows], dim=1).flatten(0, 1)
        return TeacherSignals(sequences, logits)

    def _row(self, row: int) -> Tensor:
        """One row's logits [passes, K, S, V]; only its bytes are read from the shard's file."""
        index, offset = divmod(row, SHARD_ROWS)
        with safe_open(self._shards.fetch_or_make(index, self._cache, self._make), framework="pt") as file:
            return unpack({name: file.get_slice(name)[offset] for name in file.keys()}, self._vocabulary)  # noqa: SIM118
