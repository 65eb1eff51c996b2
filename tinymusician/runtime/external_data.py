"""The files beside an ONNX graph that it reads its weights from.

ONNX Runtime opens whatever a graph names in its folder. A bundle's graph may name only files of its manifest, whose
digests were checked. This reads protocol buffers (protobuf.dev, "Encoding") and the fields of onnx.proto that contain
tensors; devices do not have the package `onnx`. Weights are skipped, not read.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tinymusician.errors import BundleError
from tinymusician.runtime.bundle_manifest import BundleFile, Role

_PARTS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}
"""By message of onnx.proto, the fields with tensors in them, and what message each is."""
_KEY, _VALUE = 1, 2
_LARGEST_TAG = 2**32
"""Readers cut a tag to 32 bits: a larger one would be another field for them."""
_NO_GRAPHS: tuple[Role, ...] = ("tokenizer", "weights", "plan")
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


def check_external_data(folder: Path, files: Sequence[BundleFile]) -> None:
    """Check that the graphs of a bundle read weights only from files of its manifest.

    Raises:
        BundleError: one names another file, or is no ONNX graph.
    """
    named = {(folder / file.path).resolve() for file in files}
    for file in files:
        if file.role in _NO_GRAPHS:
            continue
        path = folder / file.path
        try:
            locations = external_locations(path)
        except (ValueError, IndexError, RecursionError) as error:
            raise BundleError(f"bundle {folder}: {file.path} is no ONNX graph") from error
        for location in locations:
            if (path.parent / location).resolve() not in named:
                raise BundleError(
                    f"bundle {folder}: {file.path} reads weights from {location!r}, which the manifest does not name"
                )


def external_locations(path: Path) -> set[str]:
    """The files, relative to a graph's folder, that its tensors name.

    Raises:
        ValueError, IndexError: the file is no protocol buffer.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return set(_locations(content, 0, len(content), "model"))


def _locations(content: mmap.mmap, start: int, end: int, message: str) -> Iterator[str]:
    if message == "external":
        fields = {number: content[first:last] for number, first, last in _fields(content, start, end)}
        if fields.get(_KEY) == b"location":
            yield fields.get(_VALUE, b"").decode()
        return
    parts = _PARTS[message]
    for number, first, last in _fields(content, start, end):
        if number in parts:
            yield from _locations(content, first, last, parts[number])


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a message that are bytes: number, and where they begin and end."""
    while start < end:
        tag, start = _varint(content, start)
        if tag >= _LARGEST_TAG:
            raise ValueError(f"a tag of {tag}")
        kind = tag & 7
        if kind == _BYTES:
            length, start = _varint(content, start)
            if start + length > end:
                raise ValueError("a field ends outside its message")
            yield tag >> 3, start, start + length
            start += length
        elif kind == _VARINT:
            _, start = _varint(content, start)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            start += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {kind}")


def _varint(content: mmap.mmap, start: int) -> tuple[int, int]:
    """An integer of seven bits a byte, lowest first, and where it ends."""
    value = 0
    for place in range(10):
        byte = content[start + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, start + place + 1
    raise ValueError("an integer of more than ten bytes")
