"""The store of artifacts and runs: a key-value store in a local folder or in S3, with the same behaviour.

A key is a relative path such as `runs/band-1/status.json`. Writes are atomic; the last writer wins.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from tinymusician.artifacts.atomic import DRAFT, atomic_write, sweep_drafts
from tinymusician.errors import NotFoundError, StoreError

DAY = 86_400.0


class StoreEntry(NamedTuple):
    """A key with its size in bytes, and when it was last set, in seconds since 1970."""

    key: str
    size: int
    modified: float


class Store(Protocol):
    """The operations of every store. All raise `StoreError`, and `NotFoundError` for a key without a value."""

    @property
    def url(self) -> str:
        """The URL of this store, for `open_store`."""

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Set the value of `key`, of any size."""

    def get(self, key: str) -> bytes:
        """The value of `key`."""

    def upload(self, path: Path, key: str) -> None:
        """Set the value of `key` to a file's content."""

    def download(self, key: str, path: Path) -> None:
        """Write the value of `key` to `path` atomically."""

    def exists(self, key: str) -> bool:
        """Whether `key` has a value."""

    def list(self, prefix: str) -> Iterator[StoreEntry]:
        """Every key that starts with `prefix`, in order."""

    def delete(self, key: str) -> None:
        """Remove `key`; without effect if it does not exist."""

    def sweep(self, age: float = DAY) -> None:
        """Remove unfinished writes of killed processes.

        If the store cannot know whether the process lives, the write must be `age` seconds old.
        """


def check_key(key: str) -> str:
    """Return `key` if it is a plain relative path, else raise `StoreError`."""
    parts = PurePosixPath(key).parts
    if not parts or key.startswith("/") or ".." in parts or "\\" in key or key != "/".join(parts):
        raise StoreError(f"store key {key!r}: a relative path without '..' is needed")
    return key


class LocalStore:
    """A store in a folder. Values are written to a draft, flushed to disk and renamed."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        return self._root.absolute().as_uri()

    def put(self, key: str, data: bytes | memoryview) -> None:
        with self._draft(key) as draft:
            draft.write_bytes(data)

    def get(self, key: str) -> bytes:
        with self._translate_errors(key):
            return self._path(key).read_bytes()

    def upload(self, path: Path, key: str) -> None:
        with self._draft(key) as draft:
            shutil.copyfile(path, draft)

    def download(self, key: str, path: Path) -> None:
        with self._translate_errors(key), atomic_write(path) as draft:
            shutil.copyfile(self._path(key), draft)

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, prefix: str) -> Iterator[StoreEntry]:
        folder, _, start = prefix.rpartition("/")
        try:
            near = [path for path in (self._root / folder).iterdir() if path.name.startswith(start)]
        except (FileNotFoundError, NotADirectoryError):
            return
        paths = [deep for path in near for deep in (path.rglob("*") if path.is_dir() else (path,))]
        for path in sorted(paths, key=lambda path: path.relative_to(self._root).as_posix()):
            with contextlib.suppress(FileNotFoundError):  # deleted by another process meanwhile
                if path.is_file() and not path.name.startswith(DRAFT):
                    info = path.stat()
                    yield StoreEntry(path.relative_to(self._root).as_posix(), info.st_size, info.st_mtime)

    def delete(self, key: str) -> None:
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"store {self.url}: cannot delete {key!r}: {error.strerror}") from error

    def sweep(self, age: float = DAY) -> None:
        try:
            sweep_drafts(self._root, age)
        except OSError as error:
            raise StoreError(f"store {self.url}: cannot be swept: {error.strerror}") from error

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextlib.contextmanager
    def _draft(self, key: str) -> Iterator[Path]:
        try:
            with atomic_write(self._path(key)) as draft:
                yield draft
        except OSError as error:
            raise StoreError(f"store {self.url}: cannot write {key!r}: {error.strerror or error}") from error

    @contextlib.contextmanager
    def _translate_errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            if self.exists(key):
                raise
            raise NotFoundError(f"store {self.url}: nothing under {key!r}") from error
        except OSError as error:
            raise StoreError(f"store {self.url}: cannot read {key!r}: {error.strerror or error}") from error
