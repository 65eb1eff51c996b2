"""What this project relies on in a store, checked on a real one under a prefix of its own.

A store must show what was written: in reads, and in lists. Publishers find releases of the same version in a list, and
garbage collection decides by lists what is needed. No conditional write is required. Source: Amazon S3's consistency
model (strong read-after-write consistency of objects and lists).
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tinymusician.artifacts.store import Store
from tinymusician.errors import NotFoundError, StoreError

_LARGE = (8 << 20) + 1
"""Bytes of a value that S3 clients write in several parts."""
_WRITERS = 8


@dataclass(frozen=True)
class StoreCheck:
    """A guarantee, and what contradicts it; nothing if the store has it."""

    guarantee: str
    problem: str = ""


def check_store(store: Store, rounds: int = 20) -> Iterator[StoreCheck]:
    """Check every guarantee, `rounds` times where it depends on time; what was written is deleted at the end."""
    prefix = f"checks/{secrets.token_hex(8)}"
    checks: dict[str, Callable[[Store, str], str]] = {
        "a value is read as it was written": _values,
        "a read after a write shows it": partial(_reads, rounds=rounds),
        "a list after a write shows it": partial(_lists, rounds=rounds),
        "a list after a deletion does not show it": partial(_deletions, rounds=rounds),
        "of concurrent writes one is there, whole": _concurrent_writes,
        "files are uploaded and downloaded": _files,
        "a missing key is missing": _missing,
    }
    try:
        for number, (guarantee, check) in enumerate(checks.items()):
            try:
                problem = check(store, f"{prefix}/{number}")
            except StoreError as error:
                problem = str(error)
            yield StoreCheck(guarantee, problem)
    finally:
        with contextlib.suppress(StoreError):
            for entry in list(store.list(f"{prefix}/")):
                store.delete(entry.key)


def _values(store: Store, prefix: str) -> str:
    for size in (0, 1, 1000, _LARGE):
        data = secrets.token_bytes(size)
        store.put(f"{prefix}/{size}", data)
        if store.get(f"{prefix}/{size}") != data:
            return f"{size} bytes came back as others"
    return ""


def _reads(store: Store, prefix: str, rounds: int) -> str:
    for number in range(rounds):
        store.put(f"{prefix}/key", data := str(number).encode())
        if (read := store.get(f"{prefix}/key")) != data:
            return f"write {number} was followed by a read of write {read.decode()}"
    return ""


def _lists(store: Store, prefix: str, rounds: int) -> str:
    for number in range(rounds):
        store.put(f"{prefix}/{number:04}", b"x" * number)
        listed = {entry.key: entry.size for entry in store.list(f"{prefix}/")}
        expected = {f"{prefix}/{one:04}": one for one in range(number + 1)}
        if listed != expected:
            return f"after {number + 1} writes the list has {len(listed)} keys, or wrong sizes"
    return ""


def _deletions(store: Store, prefix: str, rounds: int) -> str:
    for number in range(rounds):
        store.put(f"{prefix}/{number}", b"x")
        store.delete(f"{prefix}/{number}")
        if list(store.list(f"{prefix}/")) or store.exists(f"{prefix}/{number}"):
            return f"deletion {number} is not shown"
    return ""


def _concurrent_writes(store: Store, prefix: str) -> str:
    values = [bytes([65 + writer]) * 100_000 for writer in range(_WRITERS)]
    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(lambda value: store.put(f"{prefix}/key", value), values))
    return "" if store.get(f"{prefix}/key") in values else "the value is of none of the writers"


def _files(store: Store, prefix: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        source.write_bytes(data := secrets.token_bytes(_LARGE))
        store.upload(source, f"{prefix}/file")
        store.download(f"{prefix}/file", target)
        return "" if target.read_bytes() == data else "a file came back as another"


def _missing(store: Store, prefix: str) -> str:
    if store.exists(f"{prefix}/none"):
        return "a key that was never written exists"
    try:
        store.get(f"{prefix}/none")
    except NotFoundError:
        return ""
    return "a key that was never written has a value"
