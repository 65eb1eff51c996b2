"""A store whose working notes are authenticated: who can write to it cannot change what a job learns from.

Working notes are the JSON objects that make a run's working files valid: entries of checkpoints and shards, what was
measured, and the steps that a training skips. They name larger files by digest. Each note has a `mac`, HMAC-SHA256
(RFC 2104) of the note's key and content with a key that is derived from the job key. Drivers give it to their workers
through Ray; it is never in the store. The notes of a run have a key of that run, which began with one recipe, once. An
older note of it can be put back in its own place, which makes a job repeat work; a note in another place, or one of
another key, is refused.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from tinymusician.artifacts.store import DAY, Store, StoreEntry
from tinymusician.errors import DigestMismatchError
from tinymusician.json_types import JsonObject

_NOTE = re.compile(r"(shards/.+|runs/[^/]+/(origin|checkpoints/.+|measurements/.+|skipped-steps-[^/]+))\.json")
_OF_RUNS, _ORIGIN = "runs/", "/origin.json"


class WorkingKeys(NamedTuple):
    """The key of a driver's and its workers' notes that all runs share, and that of the notes of one run."""

    shared: bytes
    run: bytes

    @classmethod
    def of_run(cls, shared: bytes, nonce: str) -> WorkingKeys:
        """The keys of the run that has a nonce."""
        return cls(shared, hmac.digest(shared, f"run\n{nonce}".encode(), "sha256"))


class AuthenticatedStore:
    """Another store, with a MAC in every working note; everything else is as in the other store."""

    def __init__(self, store: Store, keys: WorkingKeys) -> None:
        self._store, self.keys = store, keys

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def key_id(self) -> str:
        """Eight hexadecimal digits that tell shared keys apart, and nothing about them."""
        return self._mac("key id", {})[:8]

    @property
    def run_key_id(self) -> str:
        """The same for the keys of runs."""
        return self._mac(f"{_OF_RUNS}key id", {})[:8]

    def put(self, key: str, data: bytes | memoryview) -> None:
        if _NOTE.fullmatch(key):
            note: JsonObject = json.loads(bytes(data))
            data = json.dumps({**note, "mac": self._mac(key, note)}, indent=2).encode()
        self._store.put(key, data)

    def get(self, key: str) -> bytes:
        """The value of `key`; a working note without its `mac`.

        Raises:
            DigestMismatchError: a working note was not written with this key, or not in this place.
        """
        data = self._store.get(key)
        return self._verified(key, data) if _NOTE.fullmatch(key) else data

    def _verified(self, key: str, data: bytes) -> bytes:
        try:
            note: JsonObject = json.loads(data)
            mac = note.pop("mac")
            is_valid = hmac.compare_digest(str(mac).encode(), self._mac(key, note).encode())
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            is_valid = False
        if not is_valid:
            raise DigestMismatchError(
                f"{key} in {self.url}: was not written by a job with this job key, or was changed; delete it, or "
                "continue where that job key is (`tmctl signing-keys job` shows it)"
            )
        return json.dumps(note).encode()

    def _mac(self, key: str, note: JsonObject) -> str:
        content = json.dumps(note, sort_keys=True, separators=(",", ":"))
        is_of_run = key.startswith(_OF_RUNS) and not key.endswith(_ORIGIN)  # which tells the key of the run
        secret = self.keys.run if is_of_run else self.keys.shared
        return hmac.new(secret, f"{key}\n{content}".encode(), sha256).hexdigest()

    def upload(self, path: Path, key: str) -> None:
        self._store.upload(path, key)

    def download(self, key: str, path: Path) -> None:
        self._store.download(key, path)

    def exists(self, key: str) -> bool:
        return self._store.exists(key)

    def list(self, prefix: str) -> Iterator[StoreEntry]:
        return self._store.list(prefix)

    def delete(self, key: str) -> None:
        self._store.delete(key)

    def sweep(self, age: float = DAY) -> None:
        self._store.sweep(age)


def working_keys(store: Store) -> WorkingKeys | None:
    """The keys of an authenticated store; None for any other."""
    return store.keys if isinstance(store, AuthenticatedStore) else None


def run_facts(store: Store, run_id: str) -> dict[str, str]:
    """What identifies a run among all that ever had its name, for shards that are its own."""
    return {"run": run_id, "key": store.run_key_id} if isinstance(store, AuthenticatedStore) else {"run": run_id}
