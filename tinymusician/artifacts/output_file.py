"""Writes files where a user wants them: files are replaced atomically, devices and pipes are written into."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path

from tinymusician.artifacts.atomic import atomic_write
from tinymusician.errors import DataError

STDOUT = Path("-")
"""The path that stands for standard output."""
_OPEN_FILES = (Path("/dev/stdout"), Path("/dev/stderr"))


def check_writable(path: Path, force: bool) -> None:
    """Check that a file can be written, before the work for it is done.

    Raises:
        DataError: the folder is missing or read-only, or the file exists and `force` is false.
    """
    if path == STDOUT:
        return
    try:
        target = path if is_special(path) else path.resolve()
    except (OSError, RuntimeError):
        raise DataError(f"file {path}: leads through a loop of symbolic links") from None
    if target.is_dir():
        raise DataError(f"file {path}: is a folder; give a file in it")
    if not target.parent.is_dir():
        raise DataError(f"file {path}: no such folder as {target.parent}")
    if is_special(path):
        if not os.access(path, os.W_OK):
            raise DataError(f"file {path}: cannot be written (permission denied)")
        return
    if target.is_file() and not force:
        raise DataError(f"file {path}: exists already; --force replaces it")
    try:
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise DataError(f"file {path}: cannot be written ({error.strerror})") from None


def is_special(path: Path) -> bool:
    """Whether a path is written to, not replaced: a device, a pipe, or an open file such as /dev/stdout."""
    is_open_file = path in _OPEN_FILES or path.is_relative_to("/dev/fd") or path.is_relative_to("/proc")
    return path.exists() and not path.is_dir() and (is_open_file or not path.is_file())


def write_output(path: Path, data: bytes) -> None:
    """Write a file's bytes: to standard output, into a device or pipe, or as a regular file, atomically.

    A symbolic link stays, and its target is replaced. The mode of an existing file stays.

    Raises:
        DataError: it cannot be written.
    """
    try:
        if path == STDOUT:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif is_special(path):
            with path.open("wb") as sink:
                sink.write(data)
        else:
            target = path.resolve()
            mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
            with atomic_write(target, mode) as draft:
                draft.write_bytes(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
