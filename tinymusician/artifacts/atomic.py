"""Files that appear whole or not at all: written as a draft beside their place, flushed to disk and moved there.

A draft is named after the process that writes it, and after where that process can be seen. So a process of the same
machine and container knows at once which drafts were left by writers that were killed; others know it by their age.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

DRAFT = ".draft-"
"""How the names of drafts begin."""


@contextlib.contextmanager
def atomic_write(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """A draft that takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{DRAFT}{_sight()}-{os.getpid()}-", dir=path.parent)
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.chmod(mode)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def sweep_drafts(folder: Path, age: float) -> None:
    """Remove what killed writers left anywhere in `folder`; where it cannot be known that they were, after `age` s.

    Raises:
        OSError: the folder cannot be read, or a draft not be removed.
    """
    for place, _, names in os.walk(folder):  # which passes over folders that vanish
        for name in names:
            draft = Path(place) / name
            with contextlib.suppress(FileNotFoundError):  # its writer is done, or another sweeps
                if name.startswith(DRAFT) and (_abandoned(name) or time.time() - draft.stat().st_mtime > age):
                    draft.unlink()


def _abandoned(name: str) -> bool:
    """Whether a draft's writer would be seen here, and is not."""
    sight, _, rest = name.removeprefix(DRAFT).partition("-")
    process = rest.partition("-")[0]
    if sys.platform == "win32" or sight != _sight() or not process.isdigit():  # there, asking would end it
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # somebody else's, which lives; no process's number
        pass
    return False


@cache
def _sight() -> str:
    """What those processes share that see each other: the machine, and on Linux the namespace of process numbers."""
    namespace = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]
