"""Shards in the store: named arrays made piece by piece, so that interrupted work goes on where it stopped.

A set of shards is known by the fingerprint of everything its content depends on. Each shard is a content-addressed
blob and a note that names it; the note is written last, so a shard is either whole or absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tinymusician.artifacts.blobs import blob_key, get_blob, put_blob
from tinymusician.artifacts.store import Store
from tinymusician.errors import DataError, DigestMismatchError, NotFoundError

Arrays = dict[str, Any]


def fingerprint(facts: dict[str, Any]) -> str:
    """The SHA-256 of facts in canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class ShardCache:
    """Shards of one kind under `shards/KIND/FINGERPRINT` of a store: `count` by number, or one for each of `names`."""

    def __init__(
        self, store: Store, kind: str, facts: dict[str, Any], count: int = 0, names: Sequence[str] = ()
    ) -> None:
        self.store, self.count = store, len(names) or count
        self.names = names
        self.fingerprint = fingerprint(facts)
        self._prefix = f"shards/{kind}/{self.fingerprint}"
        self._paths: dict[int, Path] = {}

    def missing(self) -> list[int]:
        """The shards that are still to be made, in order."""
        present = {entry.key for entry in self.store.list(f"{self._prefix}/")}
        return [index for index in range(self.count) if self._key(index) not in present]

    def write(self, index: int, arrays: Arrays) -> None:
        """Store one shard."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shard.safetensors"
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
            note = {"sha256": put_blob(self.store, path), "size": path.stat().st_size}
        self.store.put(self._key(index), json.dumps(note).encode())

    def fetch(self, index: int, cache: Path) -> Path:
        """The local file of one shard, fetched into `cache` and checked if it is not there yet.

        Raises:
            Corrupt: the stored bytes are gone or differ from the digest; the shard is forgotten, to be made again.
        """
        try:
            return self._fetched(index, cache)
        except (DigestMismatchError, NotFoundError) as error:
            self.forget(index)
            raise DigestMismatchError(
                f"{error}; shard {self._key(index)} was dropped: run the job again to make it anew"
            ) from error

    def fetch_or_make(self, index: int, cache: Path, make: Callable[[int], Arrays] | None) -> Path:
        """`fetch`, but a shard whose bytes are damaged or gone is named, and made and stored anew if it can be.

        Its note stays where it is meanwhile: to other workers it is damaged too, and not missing.
        """
        if make is None:
            return self.fetch(index, cache)
        try:
            return self._fetched(index, cache)
        except (DigestMismatchError, NotFoundError) as error:
            logging.getLogger(__name__).warning("%s; shard %s is made anew", error, self._key(index))
            with contextlib.suppress(NotFoundError):
                self.store.delete(blob_key(self._digest(index)))
            self.write(index, make(index))
            return self._fetched(index, cache)

    def _fetched(self, index: int, cache: Path) -> Path:
        if index not in self._paths:
            digest = self._digest(index)
            path = cache / f"{digest}.safetensors"
            if not path.exists():
                get_blob(self.store, digest, path)
            self._paths[index] = path
        return self._paths[index]

    def forget(self, index: int) -> None:
        """Drop a shard's note and blob, unless somebody else just did."""
        try:
            digest = self._digest(index)
        except NotFoundError:
            return
        self.store.delete(self._key(index))
        self.store.delete(blob_key(digest))

    def read(self, index: int) -> Arrays:
        """The arrays of one shard, checked, without keeping a file."""
        with tempfile.TemporaryDirectory() as folder:
            arrays = read_arrays(self.fetch(index, Path(folder)))
            self._paths.pop(index, None)
        return arrays

    def _digest(self, index: int) -> str:
        return str(json.loads(self.store.get(self._key(index)))["sha256"])

    def _key(self, index: int) -> str:
        return f"{self._prefix}/{self.names[index] if self.names else f'shard-{index:05d}'}.json"


def make_missing(
    shards: ShardCache,
    make: Callable[[int], Arrays],
    rank: int,
    world: int,
    on_progress: Callable[[int], None],
    leads: bool = True,
    missing: Sequence[int] | None = None,
) -> None:
    """Make this worker's share of the shards that are missing; `told` hears of each one done.

    Where several make a shard together, all have the same rank and the same `missing` shards in mind, and the one that
    `leads` stores it.
    """
    for index in shards.missing() if missing is None else missing:
        if index % world == rank:
            arrays = make(index)
            if leads:
                shards.write(index, arrays)
                on_progress(index)


def read_arrays(path: Path) -> Arrays:
    """All arrays of a shard's file."""
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except SafetensorError as error:
        raise DataError(f"shard {path.name}: not a safetensors file ({error})") from error
