"""The cache of a machine: one copy of each artifact and shard, shared by its processes, up to a size limit.

An entry is a file or folder, which gets its name when it is complete. A lock per entry makes one process download while
others wait. The least recently used entries are removed when a new one needs their space, but never one that a living
process has pinned.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from tinymusician.artifacts.atomic import lock_file, open_lock, try_lock_file
from tinymusician.errors import StoreError

LIMIT_VARIABLE = "TMCTL_CACHE_LIMIT_GB"
DEFAULT_LIMIT_GB = 200.0
_LOCKS, _UNFINISHED = ".locks", ".part"
_SPARE_BYTES = 1 << 28
"""Bytes of the disk that stay free."""
_pins: dict[Path, IO[str]] = {}
"""The open lock files of the entries that this process uses; the system releases them when it ends."""


class LocalCache:
    """The entries in a folder, of at most `limit` bytes in total, unless living processes use more.

    Each entry has two locks: one is held while it is made or removed, the other is shared by the processes that use it.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self._limit = folder, limit

    def get(self, name: str, size: int, make: Callable[[Path], None], pin: bool = False) -> Path:
        """The path of an entry of `size` bytes; if it is absent, `make` writes it to the path that it receives.

        What an interrupted `make` has written to that path is still there for the next one. A pinned entry stays while
        this process lives; another one may be removed at any time, but not what has been opened.

        Raises:
            StoreError: the entry does not fit, or the folder cannot be written.
        """
        path = self.folder / name
        while path not in _pins:
            with self._translate_errors(), self._lock(name) as lock:
                if not path.exists():
                    self._free_space(name, size)
                    draft = path.with_name(f"{name}{_UNFINISHED}")
                    make(draft)
                    os.replace(draft, path)
                os.utime(lock.name)
            with self._translate_errors():
                if not pin or self._pin(path):
                    break
        return path

    def _pin(self, path: Path) -> bool:
        """Protect an entry from removal while this process lives; False if it was removed before."""
        file = open_lock(self._lock_path(f"{path.name}.pin"))
        lock_file(file, shared=True)
        if not path.exists():
            file.close()
            return False
        _pins[path] = file
        return True

    def _free_space(self, name: str, size: int) -> None:
        """Remove entries, the least recently used first, until one of `size` bytes fits.

        Raises:
            StoreError: it does not, whatever is removed.
        """
        node = f"node {socket.gethostname()}"
        if size > self._limit:
            raise StoreError(
                f"{node}: {name} has {size / 1e9:.3g} GB, and the cache {self.folder} holds at most "
                f"{self._limit / 1e9:.3g}; raise {LIMIT_VARIABLE}"
            )
        with self._lock(".space"):
            for entry in self._by_last_use():
                if self._fits(name, size):
                    return
                self._remove_unless_in_use(entry)
        if shutil.disk_usage(self.folder).free < size + _SPARE_BYTES:
            free = shutil.disk_usage(self.folder).free
            raise StoreError(
                f"{node}: the disk of {self.folder} has {free / 1e9:.3g} GB free, and {name} needs {size / 1e9:.3g}; "
                "make space, or set XDG_CACHE_HOME to a folder on a larger disk"
            )

    def _fits(self, name: str, size: int) -> bool:
        """Whether an entry of `size` bytes fits, besides all others and what remains free on the disk."""
        draft = f"{name}{_UNFINISHED}"
        used = sum(
            _size(Path(folder) / file)
            for folder, _, files in os.walk(self.folder)  # passes over folders that vanish
            for file in files
            if draft not in Path(folder).parts and file != draft
        )
        return used + size <= self._limit and shutil.disk_usage(self.folder).free >= size + _SPARE_BYTES

    def _remove_unless_in_use(self, entry: Path) -> None:
        """Remove an entry, or what a killed process left of one, unless a process makes or uses it."""
        name = entry.name.removesuffix(_UNFINISHED)
        with open_lock(self._lock_path(name)) as making, open_lock(self._lock_path(f"{name}.pin")) as pin:
            if try_lock_file(making) and try_lock_file(pin):
                removed = self.folder / f"{secrets.token_hex(8)}{_UNFINISHED}"  # a kill leaves no incomplete entry
                entry.rename(removed)
                shutil.rmtree(removed) if removed.is_dir() else removed.unlink()

    def _by_last_use(self) -> list[Path]:
        """The entries, also unfinished ones, the least recently used first."""
        return sorted((path for path in self.folder.iterdir() if path.name != _LOCKS), key=self._last_use)

    def _last_use(self, entry: Path) -> float:
        lock = self._lock_path(entry.name.removesuffix(_UNFINISHED))
        return lock.stat().st_mtime if lock.exists() else 0.0

    def _lock_path(self, name: str) -> Path:
        return self.folder / _LOCKS / name

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[IO[str]]:
        """Hold a lock. Its file stays, because a process that waits for the lock has opened it."""
        path = self._lock_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_lock(path) as file:
            lock_file(file)
            yield file

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            text = f"the cache {self.folder} cannot be written ({error.strerror or error})"
            raise StoreError(f"node {socket.gethostname()}: {text}") from error


def user_cache(folder: Path | None = None) -> LocalCache:
    """The cache of artifacts and shards in the user's cache folder, or in another `folder`.

    Raises:
        StoreError: TMCTL_CACHE_LIMIT_GB is not a positive number.
    """
    text = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < float("inf"):
        raise StoreError(f"{LIMIT_VARIABLE} {text!r}: a positive number of gigabytes is needed")
    if folder is None:
        from tinymusician.user_folders import user_folder

        folder = user_folder("cache")
    return LocalCache(folder / "artifacts", int(gigabytes * 1e9))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # removed meanwhile
        return 0
