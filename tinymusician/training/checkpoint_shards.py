"""The shards of a checkpoint: each worker writes some of the tensors as one safetensors file, straight from memory.

A shard's buffer holds the bytes of its file, and its tensors are views of the buffer: copying the state into them is
all that training waits for. Format: https://huggingface.co/docs/safetensors (length of the header, header, data).
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tinymusician.errors import DigestMismatchError
from tinymusician.training.engine import TensorSpec

_DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8


def partition(specs: Sequence[TensorSpec], world: int) -> list[list[TensorSpec]]:
    """The tensors that each of `world` workers writes: in order, with about equally many bytes."""
    total = sum(spec.nbytes for spec in specs)
    shards: list[list[TensorSpec]] = [[] for _ in range(world)]
    before = 0
    for spec in specs:
        middle = before + spec.nbytes / 2
        shards[min(world - 1, int(middle * world / max(total, 1)))].append(spec)
        before += spec.nbytes
    return shards


class ShardBuffer:
    """The bytes of a safetensors file of these tensors; `tensors` are views of them, to be written to.

    On a machine with a GPU, the buffer is pinned, which makes copies from the GPU fast.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self.specs = tuple(specs)
        ordered = sorted(specs, key=lambda spec: -spec.dtype.itemsize)  # so that each begins at a multiple of its size
        entries, end = {}, 0
        for spec in ordered:
            offsets = [end, end + spec.nbytes]
            entries[spec.name] = {"dtype": _DTYPE_NAMES[spec.dtype], "shape": spec.shape, "data_offsets": offsets}
            end += spec.nbytes
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % _ALIGNMENT)
        start = _ALIGNMENT + len(header)
        self._buffer = torch.empty(start + end, dtype=torch.uint8)
        _pin(self._buffer)
        self.data: memoryview = self._buffer.numpy().data
        self.data[:start] = len(header).to_bytes(_ALIGNMENT, "little") + header
        self.tensors: dict[str, Tensor] = {}
        for spec in ordered:
            view = self._buffer[start : start + spec.nbytes].view(spec.dtype)
            self.tensors[spec.name] = view.view(spec.shape)
            start += spec.nbytes


def _pin(buffer: Tensor) -> None:
    """Pin memory where there is a GPU. PyTorch's own pinned memory has twice the size that is asked for, at worst."""
    if torch.cuda.is_available() and buffer.numel():
        cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        cudart.cudaHostRegister(buffer.data_ptr(), buffer.numel(), 0)
        weakref.finalize(buffer, cudart.cudaHostUnregister, buffer.data_ptr())


class _TensorFile(Protocol):
    """What is used of `safetensors.safe_open`."""

    def keys(self) -> list[str]: ...

    def get_tensor(self, name: str) -> Tensor: ...


class StoredTensors(Mapping[str, Tensor]):
    """The tensors under a prefix in safetensors files, each read when it is asked for; the files may be deleted."""

    def __init__(self, files: Sequence[Path], prefix: str = "") -> None:
        """Open the files.

        Raises:
            DigestMismatchError: one is not a safetensors file.
            FileNotFoundError: one does not exist.
        """
        self._files: dict[str, tuple[_TensorFile, str]] = {}
        for path in files:
            try:
                file: _TensorFile = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise DigestMismatchError(f"checkpoint {path.name}: not a safetensors file ({error})") from error
            self._files |= {name.removeprefix(prefix): (file, name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        file, key = self._files[name]
        return file.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
