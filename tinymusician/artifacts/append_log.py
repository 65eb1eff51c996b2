"""A text that grows, such as metrics or a log, in numbered parts of a store: `PREFIX/000000` and so on.

A write sets the last part only, so it costs at most `part_bytes` whatever was written before. All parts but the last
are complete, and do not change.
"""

from __future__ import annotations

from collections.abc import Callable

from tinymusician.artifacts.store import Store
from tinymusician.errors import NotFoundError

PART_BYTES = 128 * 1024


class AppendLog:
    """The only writer of a log; it continues one that exists."""

    def __init__(self, store: Store, prefix: str, part_bytes: int = PART_BYTES) -> None:
        self._store, self._prefix, self._part_bytes = store, prefix, part_bytes
        keys = _keys(store, prefix)
        self._index = max(0, len(keys) - 1)
        self._tail = store.get(keys[-1]) if keys else b""

    def append(self, data: bytes) -> None:
        """Append bytes. What a store did not take is written with the next call.

        Raises:
            StoreError: the store did not take it.
        """
        self._tail += data
        while len(self._tail) > self._part_bytes:
            end = self._tail.rfind(b"\n", 0, self._part_bytes) + 1 or self._part_bytes
            self._store.put(_key(self._prefix, self._index), self._tail[:end])
            self._tail, self._index = self._tail[end:], self._index + 1
        self._store.put(_key(self._prefix, self._index), self._tail)

    def truncate(self, predicate: Callable[[bytes], bool]) -> None:
        """Remove the lines at the end at which it is false; parts are deleted from the last one on."""
        while True:
            lines = self._tail.splitlines(keepends=True)
            end = len(lines)
            while end and not predicate(lines[end - 1]):
                end -= 1
            if end or self._index == 0:
                break
            self._store.delete(_key(self._prefix, self._index))
            self._index -= 1
            self._tail = self._store.get(_key(self._prefix, self._index))
        if end < len(lines):
            self._tail = b"".join(lines[:end])
            self._store.put(_key(self._prefix, self._index), self._tail)


class AppendLogReader:
    """Reads a log that another process writes; a reader that follows it fetches only what is new."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store, self._prefix, self._index, self._offset = store, prefix, 0, 0

    def read(self) -> bytes:
        """What was appended since the last call; at first, everything."""
        pieces = [self._rest()]
        while self._store.exists(_key(self._prefix, self._index + 1)):
            pieces.append(self._rest())  # once more: the part may have grown before the next one began
            self._index, self._offset = self._index + 1, 0
            pieces.append(self._rest())
        return b"".join(pieces)

    def _rest(self) -> bytes:
        """What is new in the current part; all of it if it is shorter than before, as a resumed run truncates it."""
        try:
            part = self._store.get(_key(self._prefix, self._index))
        except NotFoundError:
            return b""
        rest = part[self._offset :] if self._offset <= len(part) else part
        self._offset = len(part)
        return rest


def _keys(store: Store, prefix: str) -> list[str]:
    return sorted(entry.key for entry in store.list(f"{prefix}/"))


def _key(prefix: str, index: int) -> str:
    return f"{prefix}/{index:06d}"
