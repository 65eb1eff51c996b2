"""The decoder's batch: rows at different positions, each with its cross-attention, advanced one step at a time.

The KV cache is one buffer per layer for keys and one for values, [capacity, H, M, D], which the graph updates in place.
The rows in use come first; when a row is removed, the last one moves to its index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinymusician.runtime.session import Array, Session

Floats = npt.NDArray[np.float32]
_LENGTH_STEP = 128
_TEXT_STEP = 16


@dataclass(eq=False)
class BatchSlot:
    """A row of the batch. `index` is its current index in the batch, `position` its number of steps so far."""

    index: int
    position: int = 0


@dataclass(frozen=True)
class CrossAttentionKV:
    """A prompt's cross-attention: alternating keys and values of each layer, [H, L, D], and the `mask` [L]."""

    arrays: Sequence[Floats]
    mask: npt.NDArray[np.int32]


class Decoder:
    """Runs the fused decoder graph over the rows of the batch."""

    def __init__(self, session: Session) -> None:
        """`session` is an ONNX Runtime session of the decoder's graph."""
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
        self._free()

    @property
    def rows(self) -> int:
        """The number of rows in the batch."""
        return len(self._rows)

    def add(self, texts: Sequence[CrossAttentionKV], steps: int) -> list[BatchSlot]:
        """Add a row for each of `texts`, at position 0, with capacity for `steps` steps."""
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
        """Remove a row; the last row moves to its index."""
        last = self._rows.pop()
        if last is not row:
            for buffer in self._caches:
                buffer[row.index, :, : last.position] = buffer[last.index, :, : last.position]
            for array in (*self._cross, self._mask):
                array[row.index] = array[last.index]
            last.index = row.index
            self._rows[row.index] = last
        if not self._rows:
            self._free()
        self._bind()

    def clear(self) -> None:
        """Remove all rows and free all buffers."""
        self._rows.clear()
        self._free()
        self._bind()

    def step(self, codes_BK: npt.NDArray[np.int64]) -> Floats:
        """Advance every row by its codes [B, K]; returns logits [B, K, V], which are valid until the next step."""
        count = len(self._rows)
        self._codes[:count] = codes_BK
        self._positions[:count] = [row.position for row in self._rows]
        self._session.run_with_iobinding(self._binding)
        for row in self._rows:
            row.position += 1
        return self._logits[:count]

    def cache_arrays(self) -> list[Array]:
        """Alternating keys and values of each layer, [rows, H, M, D]; positions beyond a row's are zero."""
        return [buffer[: len(self._rows)] for buffer in self._caches]

    def _free(self) -> None:
        """Free all buffers."""
        self._length, self._text = 0, 0
        self._caches: list[Array] = []
        self._cross: list[Floats] = []
        self._mask: npt.NDArray[np.int32] = np.zeros((0, 0), np.int32)

    def _reserve(self, rows: int, steps: int, text: int) -> None:
        """Grow the buffers if necessary, with their contents."""
        capacity = len(self._mask)
        if rows <= capacity and steps <= self._length and text <= self._text:
            return
        capacity = capacity if rows <= capacity else 1 << (rows - 1).bit_length()
        length = max(self._length, _round_up(steps, _LENGTH_STEP))
        width = max(self._text, _round_up(text, _TEXT_STEP))
        used = len(self._rows)
        cache, cross = (capacity, self._heads, length, self._size), (capacity, self._heads, width, self._size)
        count = 2 * self.layers
        nothing = np.zeros((0, self._heads, 0, self._size), np.float32)
        caches = [_grow(old, cache, used) for old in self._caches or [nothing.astype(self._cache_dtype)] * count]
        crosses = [_grow(old, cross, used) for old in self._cross or [nothing] * count]
        mask = np.zeros((capacity, width), np.int32)
        mask[:used, : self._mask.shape[1]] = self._mask[:used]
        # All memory is allocated: only now does anything change.
        self._caches, self._cross, self._mask, self._length, self._text = caches, crosses, mask, length, width
        self._codes = np.zeros((capacity, self.num_codebooks), np.int64)
        self._positions = np.zeros(capacity, np.int32)
        self._logits = np.zeros((capacity, self.num_codebooks, self.vocabulary), np.float32)

    def _bind(self) -> None:
        """Bind the graph's inputs and outputs to the first rows of the buffers."""
        from onnxruntime import OrtValue

        count = len(self._rows)
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        if not count:
            return

        def value(array: Array) -> OrtValue:
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


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step


def _grow(old: Array, shape: tuple[int, ...], used: int) -> Array:
    new = np.zeros(shape, old.dtype)
    new[:used, :, : old.shape[2]] = old[:used]
    return new
