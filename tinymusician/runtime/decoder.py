"""The decoder at work: a batch of rows, each with its text and at its own position, one step at a time.

Caches are one buffer a layer for keys and one for values, [capacity, H, M, D], that the graph reads and writes in
place. Rows in use are the first ones; when one leaves, the last takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_LENGTH_STEP = 128
_TEXT_STEP = 16


@dataclass(eq=False)
class BatchSlot:
    """One sequence under generation. `index` is its present place in the batch, `position` how many codes it holds."""

    index: int
    position: int = 0


@dataclass(frozen=True)
class CrossAttentionKV:
    """One prompt's cross-attention: `arrays` keys and values by layer in turn, each [H, L, D], and its `mask` [L]."""

    arrays: Sequence[Floats]
    mask: npt.NDArray[np.int32]


class Decoder:
    """Runs the fused decoder graph over the rows that are in the batch."""

    def __init__(self, session: Any) -> None:
        """`session` is an ONNX Runtime session of the decoder's graph, whose inputs tell the shape."""
        self._session, self._binding = session, session.io_binding()
        shapes = {value.name: value.shape for value in session.get_inputs()}
        self.layers = sum(name.startswith("past_key.") for name in shapes)
        self.num_codebooks = int(shapes["codes"][1])
        outputs = {value.name: value.shape for value in session.get_outputs()}
        self.vocabulary = int(outputs["logits"][2])
        _, self._heads, _, self._size = shapes["past_key.0"]
        types = {value.name: value.type for value in session.get_inputs()}
        self._cache_dtype = np.int8 if types["past_key.0"] == "tensor(int8)" else np.float32
        self._rows: list[BatchSlot] = []
        self._forget()

    @property
    def rows(self) -> int:
        """How many rows are in the batch."""
        return len(self._rows)

    def add(self, texts: Sequence[CrossAttentionKV], steps: int) -> list[BatchSlot]:
        """Take a row in for each of `texts`, at position 0, with room for `steps` steps."""
        first = len(self._rows)
        self._reserve(first + len(texts), steps, max(len(text.mask) for text in texts))
        for index, text in enumerate(texts, first):
            self._mask[index] = 0
            self._mask[index, : len(text.mask)] = text.mask
            for buffer, array in zip(self._cross, text.arrays, strict=True):
                buffer[index] = 0  # a row without text attends evenly to all columns, masked or not
                buffer[index, :, : array.shape[1]] = array
            self._rows.append(BatchSlot(index))
        self._bind()
        return self._rows[first:]

    def remove(self, row: BatchSlot) -> None:
        """Let a row go; the last row takes its place."""
        last = self._rows.pop()
        if last is not row:
            for buffer in self._caches:
                buffer[row.index, :, : last.position] = buffer[last.index, :, : last.position]
            for array in (*self._cross, self._mask):
                array[row.index] = array[last.index]
            last.index = row.index
            self._rows[row.index] = last
        if not self._rows:
            self._forget()
        self._bind()

    def clear(self) -> None:
        """Let all rows go and give all buffers back."""
        self._rows.clear()
        self._forget()
        self._bind()

    def step(self, codes_BK: npt.NDArray[np.int64]) -> Floats:
        """Give every row its next codes, in the rows' order; returns logits [B, K, V], valid until the next step."""
        count = len(self._rows)
        self._codes[:count] = codes_BK
        self._positions[:count] = [row.position for row in self._rows]
        self._session.run_with_iobinding(self._binding)
        for row in self._rows:
            row.position += 1
        return self._logits[:count]

    def cache_arrays(self) -> list[npt.NDArray[Any]]:
        """Keys and values of each layer in turn, [rows, H, M, D]; positions that no row has reached are zero."""
        return [buffer[: len(self._rows)] for buffer in self._caches]

    def _forget(self) -> None:
        """Give all buffers back."""
        self._length, self._text = 0, 0
        self._caches: list[npt.NDArray[Any]] = []
        self._cross: list[Floats] = []
        self._mask: npt.NDArray[np.int32] = np.zeros((0, 0), np.int32)

    def _reserve(self, rows: int, steps: int, text: int) -> None:
        """Make the buffers large enough, keeping what is in them."""
        capacity = len(self._mask)
        if rows <= capacity and steps <= self._length and text <= self._text:
            return
        capacity = capacity if rows <= capacity else 1 << (rows - 1).bit_length()  # few moves as rows come one by one
        length = max(self._length, _rounded(steps, _LENGTH_STEP))
        width = max(self._text, _rounded(text, _TEXT_STEP))
        used = len(self._rows)
        cache, cross = (capacity, self._heads, length, self._size), (capacity, self._heads, width, self._size)
        count = 2 * self.layers
        nothing = np.zeros((0, self._heads, 0, self._size), np.float32)
        caches = [_grown(old, cache, used) for old in self._caches or [nothing.astype(self._cache_dtype)] * count]
        crosses = [_grown(old, cross, used) for old in self._cross or [nothing] * count]
        mask = np.zeros((capacity, width), np.int32)
        mask[:used, : self._mask.shape[1]] = self._mask[:used]
        # All memory is there: only now is anything changed.
        self._caches, self._cross, self._mask, self._length, self._text = caches, crosses, mask, length, width
        self._codes = np.zeros((capacity, self.num_codebooks), np.int64)
        self._positions = np.zeros(capacity, np.int32)
        self._logits = np.zeros((capacity, self.num_codebooks, self.vocabulary), np.float32)

    def _bind(self) -> None:
        """Point the graph's inputs and outputs at the first rows of the buffers."""
        from onnxruntime import OrtValue

        count = len(self._rows)
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        if not count:
            return

        def value(array: npt.NDArray[Any]) -> Any:
            return OrtValue.ortvalue_from_numpy(array[:count])

        self._binding.bind_ortvalue_output("logits", value(self._logits))
        for name, array in (("codes", self._codes), ("positions", self._positions), ("text_mask", self._mask)):
            self._binding.bind_ortvalue_input(name, value(array))
        for number, (cache, cross) in enumerate(zip(self._caches, self._cross, strict=True)):
            layer, role = divmod(number, 2)
            kind = ("key", "value")[role]
            shared = value(cache)
            self._binding.bind_ortvalue_input(f"past_{kind}.{layer}", shared)
            self._binding.bind_ortvalue_output(f"kept_{kind}.{layer}", shared)
            self._binding.bind_ortvalue_input(f"cross_{kind}.{layer}", value(cross))


def _rounded(count: int, step: int) -> int:
    return -(-count // step) * step


def _grown(old: npt.NDArray[Any], shape: tuple[int, ...], used: int) -> npt.NDArray[Any]:
    new = np.zeros(shape, old.dtype)
    new[:used, :, : old.shape[2]] = old[:used]
    return new
