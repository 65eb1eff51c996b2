"""Flushes a file to the disk while more of it is written, so that the flush at its end is short."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

FLUSH_BYTES = 32 << 20
"""Bytes that are written between the starts of two flushes, at least."""


class BackgroundFlush:
    """Flushes an open file in a thread; a context that ends when no flush runs any more.

    Raises:
        OSError: at a later `add`, or at the end: a flush failed, so the disk may not have what was written.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._written = file, 0
        self._thread, self._running = ThreadPoolExecutor(1), Future[None]()
        self._running.set_result(None)

    def __enter__(self) -> BackgroundFlush:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self._running.result()

    def add(self, size: int) -> None:
        """Count `size` written bytes, and start a flush if there is enough to do and none is running."""
        self._written += size
        if self._written >= FLUSH_BYTES and self._running.done():
            self._running.result()
            self._written, self._running = 0, self._thread.submit(os.fsync, self._file.fileno())
