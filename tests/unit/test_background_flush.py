"""A flush in the background: a disk that fails is noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tinymusician.artifacts.background_flush import FLUSH_BYTES, BackgroundFlush


def test_a_flush_that_fails_is_noticed() -> None:
    """Nothing can flush a pipe."""
    reading, writing = os.pipe()
    with (
        open(reading, "rb"),
        open(writing, "wb", buffering=0) as pipe,
        pytest.raises(OSError, match="Invalid argument"),
        BackgroundFlush(pipe) as flush,
    ):
        flush.add(FLUSH_BYTES)


def test_the_file_is_closed_after_the_last_flush(tmp_path: Path) -> None:
    """Many flushes are due at once: those that find one running are left out, and the end waits for that one."""
    with (tmp_path / "file").open("wb") as file, BackgroundFlush(file) as flush:
        for _ in range(100):
            file.write(bytes(1000))
            flush.add(FLUSH_BYTES)
    assert (tmp_path / "file").stat().st_size == 100_000
