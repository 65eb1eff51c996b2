"""Where artifacts and runs are kept: a flat space of keys over a local folder or S3, with one behaviour.

A key is a relative path such as `runs/band-1/status.json`. A value appears whole or not at all; the last writer wins.
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
    """The operations every store offers. All raise `StoreError`, and `NotFound` where nothing lies under a key."""

    @property
    def url(self) -> str:
        """The address that `open_store` gives this store for."""

    def put(self, key: str, data: bytes) -> None:
        """Set the value of `key`."""

    def get(self, key: str) -> bytes:
        """The value of `key`."""

    def upload(self, path: Path, key: str) -> None:
        """Set the value of `key` to a file's content."""

    def download(self, key: str, path: Path) -> None:
        """Write the value of `key` to `path`, which appears whole or not at all."""

    def exists(self, key: str) -> bool:
        """Whether anything lies under `key`."""

    def list(self, prefix: str) -> Iterator[StoreEntry]:
        """Every key that starts with `prefix`, in order."""

    def delete(self, key: str) -> None:
        """Remove `key`; nothing happens when it is not there."""

    def sweep(self, age: float = DAY) -> None:
        """Remove what killed writers left unfinished; none of it is a value.

        Where the store cannot tell whether a writer lives, it waits for `age` seconds.
        """


def check_key(key: str) -> str:
    """Return `key` if it is a plain relative path, else raise `StoreError`."""
    parts = PurePosixPath(key).parts
    if not parts or key.startswith("/") or ".." in parts or "\\" in key or key != "/".join(parts):
        raise StoreError(f"store key {key!r}: a relative path without '..' is needed")
    return key


class LocalStore:
    """A folder. Values are written beside their place, flushed to disk and moved there."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        return self._root.absolute().as_uri()

    def put(self, key: str, data: bytes) -> None:
        with self._draft(key) as draft:
            draft.write_bytes(data)

    def get(self, key: str) -> bytes:
        with self._reading(key):
            return self._path(key).read_bytes()

    def upload(self, path: Path, key: str) -> None:
        with self._draft(key) as draft:
            shutil.copyfile(path, draft)

    def download(self, key: str, path: Path) -> None:
        with self._reading(key), atomic_write(path) as draft:
            shutil.copyfile(self._path(key), draft)

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, prefix: str) -> Iterator[StoreEntry]:
        folder, _, begin = prefix.rpartition("/")
        try:
            near = [path for path in (self._root / folder).iterdir() if path.name.startswith(begin)]
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
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            if self.exists(key):
                raise
            raise NotFoundError(f"store {self.url}: nothing under {key!r}") from error
        except OSError as error:
            raise StoreError(f"store {self.url}: cannot read {key!r}: {error.strerror or error}") from error
