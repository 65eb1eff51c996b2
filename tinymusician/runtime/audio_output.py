"""Writes audio files where a user wants them: files are replaced atomically, devices and pipes are written into."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path

from tinymusician.artifacts.atomic import atomic_write
from tinymusician.errors import DataError
from tinymusician.runtime.audio import Samples, encode, supported_suffixes

STDOUT = Path("-")
"""The path that stands for standard output."""


def audio_format(path: Path) -> str:
    """The suffix that determines the format of a file; standard output, devices and pipes get WAV.

    Raises:
        DataError: the suffix is not one of a supported format.
    """
    suffix = path.suffix.lower()
    if suffix in supported_suffixes():
        return suffix
    if path == STDOUT or _is_special(path):
        return ".wav"
    raise DataError(f"{path}: the suffix is not known; supported are {', '.join(supported_suffixes())}")


def check_writable(path: Path, force: bool) -> None:
    """Check that audio can be written to a path, before any is generated.

    Raises:
        DataError: the folder is missing or read-only, or the file exists and `force` is false.
    """
    if path == STDOUT:
        return
    try:
        target = path if _is_special(path) else path.resolve()
    except (OSError, RuntimeError):
        raise DataError(f"file {path}: leads through a loop of symbolic links") from None
    if target.is_dir():
        raise DataError(f"file {path}: is a folder; give a file in it")
    if not target.parent.is_dir():
        raise DataError(f"file {path}: no such folder as {target.parent}")
    if _is_special(path):
        if not os.access(path, os.W_OK):
            raise DataError(f"file {path}: cannot be written (permission denied)")
        return
    if target.is_file() and not force:
        raise DataError(f"file {path}: exists already; use force to replace it")
    try:
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise DataError(f"file {path}: cannot be written ({error.strerror})") from None


def _is_special(path: Path) -> bool:
    """Whether a path is written to, not replaced: a device, a pipe, or an open file such as /dev/stdout."""
    is_open_file = path.is_relative_to("/dev") or path.is_relative_to("/proc")
    return path.exists() and not path.is_dir() and (is_open_file or not path.is_file())


def write(path: Path, data: bytes) -> None:
    """Write a file's bytes: to standard output, into a device or pipe, or as a regular file, atomically.

    A symbolic link stays, and its target is replaced. The mode of an existing file stays.

    Raises:
        DataError: it cannot be written.
    """
    try:
        if path == STDOUT:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif _is_special(path):
            with path.open("wb") as sink:
                sink.write(data)
        else:
            target = path.resolve()
            mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o644
            with atomic_write(target, mode) as draft:
                draft.write_bytes(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_wave(path: Path, samples: Samples, rate: int) -> None:
    """Write mono samples [N] in [-1, 1] as a 16-bit WAV file; louder samples are clipped.

    Raises:
        DataError: the file cannot be written.
    """
    write(path, encode(samples, rate, ".wav"))
