"""Atomic file writes: into a draft beside the target, flushed to disk, then renamed; and locks between processes.

A draft's name contains the id of the process that writes it, and a hash of the machine and process namespace. A process
of the same machine and namespace knows at once which drafts belong to dead processes; others go by age.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import IO

DRAFT = ".draft-"
"""The prefix of drafts' names."""


@contextlib.contextmanager
def atomic_write(path: Path, mode: int | None = None) -> Iterator[Path]:
    """A draft that replaces `path` when the block ends without an error; by default with the mode of the user's umask.

    The folder is flushed too, so that the file survives a loss of power.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f"{DRAFT}{_process_scope()}-{os.getpid()}-{secrets.token_hex(6)}"
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else 0o600))
    try:
        yield draft
        if mode is not None:
            draft.chmod(mode)
        flush(draft)
        os.replace(draft, path)
        flush(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file to disk, or a folder where the system can."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to be made beside `path`, which gets that name when the block ends without an error.

    Raises:
        OSError: `path` exists and is not empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=DRAFT, dir=path.parent) as scratch:
        draft = Path(scratch) / path.name
        yield draft
        os.rename(draft, path)


def open_lock(path: Path) -> IO[str]:
    """Open a lock's file, which is created if it is missing; its content does not matter, and stays.

    Raises:
        OSError: it cannot be opened, or is a symbolic link: another user may have planted that.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, 0o666), "r+", encoding="utf-8")


def lock_file(file: IO[str], shared: bool = False) -> None:
    """Wait for the exclusive or shared lock of an open file, which the system releases when the process ends.

    On Windows, shared locks are not needed: it never removes an open file.

    Raises:
        OSError: on Windows, another process holds it for ten seconds.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        import msvcrt

        if not shared:
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


def try_lock_file(file: IO[str]) -> bool:
    """Take the exclusive lock of an open file if no other process holds a lock of it."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        import msvcrt

        kind, lock = msvcrt.LK_NBLCK, msvcrt.locking  # type: ignore[attr-defined,unused-ignore]
        attempt = partial(lock, file.fileno(), kind, 1)
    else:
        attempt = partial(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        attempt()
    except OSError:
        return False
    return True


def sweep_drafts(folder: Path, age: float) -> None:
    """Remove drafts of dead processes anywhere in `folder`, and drafts of unknown processes after `age` seconds.

    Raises:
        OSError: the folder cannot be read, or a draft cannot be removed.
    """
    for place, _, names in os.walk(folder):  # skips folders that vanish
        for name in names:
            draft = Path(place) / name
            with contextlib.suppress(FileNotFoundError):  # its writer finished, or another process removed it
                if name.startswith(DRAFT) and (_abandoned(name) or time.time() - draft.stat().st_mtime > age):
                    draft.unlink()


def _abandoned(name: str) -> bool:
    """Whether a draft's process would be visible here, and is dead."""
    scope, _, rest = name.removeprefix(DRAFT).partition("-")
    process = rest.partition("-")[0]
    if sys.platform == "win32" or scope != _process_scope() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # alive, but another user's; not a process id
        pass
    return False


@cache
def _process_scope() -> str:
    """A hash of the machine and, on Linux, the process id namespace: equal for processes that see each other."""
    namespace = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]
