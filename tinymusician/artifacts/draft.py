"""Files that appear whole or not at all: written as a draft beside their place, flushed to disk and moved there.

A draft is locked for as long as it is written. The system ends a lock with its process, however that ends, so drafts
that nobody locks are what killed writers left, on this machine or, where the file system shares locks (NFS), on others.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

DRAFT = ".draft-"
"""How the names of drafts begin."""


@contextlib.contextmanager
def whole_file(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """A draft that takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, draft = _locked_draft(path.parent)
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.chmod(mode)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


def sweep_drafts(folder: Path, age: float) -> None:
    """Remove what killed writers left anywhere in `folder`; where there are no locks, after `age` seconds."""
    for draft in folder.rglob(f"{DRAFT}*"):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # done, swept by another, or somebody else's
            _remove_abandoned(draft, age)


def _locked_draft(folder: Path) -> tuple[int | None, Path]:
    """A new draft, and what holds its lock."""
    while True:
        handle, name = tempfile.mkstemp(prefix=DRAFT, dir=folder)
        if sys.platform == "win32":  # a file that is open could be neither moved nor removed
            os.close(handle)
            return None, Path(name)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):
            return handle, Path(name)
        os.close(handle)  # swept before it was locked


def _remove_abandoned(draft: Path, age: float) -> None:
    if sys.platform != "win32":
        handle = os.open(draft, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.unlink()
            return
        except BlockingIOError:  # its writer lives
            return
        except OSError:  # a file system without locks
            pass
        finally:
            os.close(handle)
    if time.time() - draft.stat().st_mtime > age:
        draft.unlink()
