"""Shards in the store: named arrays that are computed one by one, so that interrupted work continues where it stopped.

The key of a set of shards is the fingerprint of everything its content depends on. Each shard is a content-addressed
blob and an index entry with its digest; the entry is written last, so a shard is either complete or absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tinymusician.artifacts.authenticated_store import AuthenticatedStore
from tinymusician.artifacts.blobs import blob_key, check_digest, get_blob, put_blob
from tinymusician.artifacts.local_cache import user_cache
from tinymusician.artifacts.store import Store
from tinymusician.errors import DataError, DigestMismatchError, NotFoundError
from tinymusician.json_types import JsonObject

if TYPE_CHECKING:
    from pydantic import JsonValue

Arrays = dict[str, Any]


def fingerprint(facts: Mapping[str, object]) -> str:
    """The SHA-256 of facts in canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class ShardCache:
    """Shards of one kind under `shards/KIND/FINGERPRINT` of a store: `count` by number, or one for each of `names`.

    In an authenticated store those of each key are apart: nobody can use what jobs of another key have written.
    """

    def __init__(
        self, store: Store, kind: str, facts: Mapping[str, object], count: int = 0, names: Sequence[str] = ()
    ) -> None:
        self.store, self.count = store, len(names) or count
        self.names = names
        self.fingerprint = fingerprint(facts)
        writer = f"-{store.key_id}" if isinstance(store, AuthenticatedStore) else ""
        self._prefix = f"shards/{kind}/{self.fingerprint}{writer}"
        self._paths: dict[int, Path] = {}

    def missing(self) -> list[int]:
        """The shards that the store lacks, in order."""
        present = {entry.key for entry in self.store.list(f"{self._prefix}/")}
        return [index for index in range(self.count) if self._key(index) not in present]

    def contains(self, index: int) -> bool:
        """Whether the store has one shard."""
        try:
            self._entry(index)
        except (NotFoundError, DigestMismatchError):
            return False
        return True

    def write(self, index: int, arrays: Arrays, details: Mapping[str, JsonValue] | None = None) -> None:
        """Store one shard, with a JSON object that describes it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shard.safetensors"
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
            entry = {"sha256": put_blob(self.store, path), "size": path.stat().st_size, "details": details or {}}
        self.store.put(self._key(index), json.dumps(entry).encode())

    def details(self, index: int) -> dict[str, JsonValue]:
        """The JSON object that was stored with a shard.

        Raises:
            DigestMismatchError: no job of this key has written it; the shard is deleted.
        """
        try:
            result: dict[str, JsonValue] = self._entry(index)["details"]
        except DigestMismatchError as error:
            raise self._dropped(index, error) from error
        return result

    def fetch(self, index: int, cache: Path) -> Path:
        """The local file of one shard, downloaded into `cache` and verified unless it exists there.

        Raises:
            DigestMismatchError: the stored bytes are gone or differ from the digest; the shard is deleted.
        """
        try:
            return self._fetched(index, cache)
        except (DigestMismatchError, NotFoundError) as error:
            raise self._dropped(index, error) from error

    def fetch_or_make(self, index: int, cache: Path, make: Callable[[int], Arrays] | None) -> Path:
        """`fetch`, but a shard whose bytes are damaged or gone is logged, and computed again with `make`.

        Its index entry stays meanwhile: other workers see it as damaged too, not as missing.
        """
        if make is None:
            return self.fetch(index, cache)
        try:
            return self._fetched(index, cache)
        except (DigestMismatchError, NotFoundError) as error:
            logging.getLogger(__name__).warning("%s; shard %s is computed again", error, self._key(index))
            with contextlib.suppress(NotFoundError, DigestMismatchError):
                self.store.delete(blob_key(self._digest(index)))
            self.write(index, make(index))
            return self._fetched(index, cache)

    def _fetched(self, index: int, cache: Path) -> Path:
        path = self._paths.get(index)
        if path is None or not path.exists():  # it may have made room for others
            entry = self._entry(index)
            digest = check_digest(entry["sha256"])
            make = partial(get_blob, self.store, digest)
            path = self._paths[index] = user_cache(cache).get(f"{digest}.safetensors", entry["size"], make)
        return path

    def _dropped(self, index: int, error: Exception) -> DigestMismatchError:
        self.forget(index)
        return DigestMismatchError(f"{error}; shard {self._key(index)} was dropped: run the job again to recompute it")

    def forget(self, index: int) -> None:
        """Delete a shard's index entry and blob, if they still exist."""
        try:
            digest = self._digest(index)
        except NotFoundError:
            return
        except DigestMismatchError:  # nobody knows whose blob a false entry names
            self.store.delete(self._key(index))
            return
        self.store.delete(self._key(index))
        self.store.delete(blob_key(digest))

    def read(self, index: int) -> Arrays:
        """The arrays of one shard, verified, without a file in a cache."""
        return self._read_or_make(index, None)

    def join(self, names: Sequence[str], cache: Path, make: Callable[[int], Arrays] | None) -> Arrays:
        """The arrays of these names of all shards, one shard after the other, mapped from files of this machine.

        The files are made once per machine. `make` computes a damaged shard again.

        Raises:
            DigestMismatchError: a shard is damaged, and there is no `make`.
        """
        if not self.contains(0):
            self._read_or_make(0, make)
        size = self.count * int(self._entry(0)["size"])
        written = [(entry.key, entry.modified) for entry in self.store.list(f"{self._prefix}/")]
        facts = {"store": self.store.url, "shards": self._prefix, "names": list(names), "written": written}
        name = f"joined-{fingerprint(facts)}"  # another after each change
        folder = user_cache(cache).get(name, size, partial(self._write_joined, names, make), pin=True)
        shapes: JsonObject = json.loads((folder / "shapes.json").read_text())
        return {
            name: np.memmap(folder / name, dtype, "r", shape=tuple(shape)) for name, (dtype, shape) in shapes.items()
        }

    def _write_joined(self, names: Sequence[str], make: Callable[[int], Arrays] | None, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shapes: JsonObject = {}
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context((folder / name).open("wb")) for name in names}
            for index in range(self.count):
                for name, array in self._read_or_make(index, make).items():
                    if name in files and len(array):
                        files[name].write(np.ascontiguousarray(array).data)
                        rows = shapes[name][1][0] if name in shapes else 0
                        shapes[name] = [array.dtype.str, [rows + len(array), *array.shape[1:]]]
        (folder / "shapes.json").write_text(json.dumps(shapes))

    def _read_or_make(self, index: int, make: Callable[[int], Arrays] | None) -> Arrays:
        """The arrays of one shard, without a file in a cache."""
        with tempfile.TemporaryDirectory() as folder:
            arrays = read_arrays(self.fetch_or_make(index, Path(folder), make))
            self._paths.pop(index, None)
        return arrays

    def _digest(self, index: int) -> str:
        return str(self._entry(index)["sha256"])

    def _entry(self, index: int) -> JsonObject:
        entry: JsonObject = json.loads(self.store.get(self._key(index)))
        return entry

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
    """Compute this worker's share of the missing shards; `on_progress` receives the index of each.

    Workers that compute a shard together have the same rank and the same `missing`; the one that `leads` stores it.
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
