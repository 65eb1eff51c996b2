"""A store with retries: long jobs survive a store that is unavailable for a minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tinymusician.artifacts.store import DAY, Store, StoreEntry
from tinymusician.errors import AccessDeniedError, TransientStoreError

_FIRST, _LONGEST = 1.0, 15.0

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


class RetryingStore:
    """Retries requests to another store for up to `seconds` while it does not respond; a refusal is a response."""

    def __init__(self, store: Store, seconds: float) -> None:
        self._store, self._seconds = store, seconds

    @property
    def url(self) -> str:
        return self._store.url

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._retry(lambda: self._store.put(key, data))

    def get(self, key: str) -> bytes:
        return self._retry(lambda: self._store.get(key))

    def upload(self, path: Path, key: str) -> None:
        self._retry(lambda: self._store.upload(path, key))

    def download(self, key: str, path: Path) -> None:
        self._retry(lambda: self._store.download(key, path))

    def exists(self, key: str) -> bool:
        return self._retry(lambda: self._store.exists(key))

    def list(self, prefix: str) -> Iterator[StoreEntry]:
        yield from self._retry(lambda: [*self._store.list(prefix)])

    def delete(self, key: str) -> None:
        self._retry(lambda: self._store.delete(key))

    def sweep(self, age: float = DAY) -> None:
        self._retry(lambda: self._store.sweep(age))

    def _retry(self, request: Callable[[], Result]) -> Result:
        deadline, wait = time.monotonic() + self._seconds, _FIRST
        while True:
            try:
                return request()
            except AccessDeniedError:
                raise
            except TransientStoreError as error:
                if time.monotonic() + wait > deadline:
                    raise
                _log.warning("%s; next attempt in %g s", error, wait)
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST)
