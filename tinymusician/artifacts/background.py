"""Writes to a store in a thread, so that training does not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundWriter:
    """Runs writes one by one in a thread. Of writes with one name that wait, only the last is done."""

    def __init__(self) -> None:
        self._writes: dict[str, Callable[[], None]] = {}
        self._changed = threading.Condition()
        self._is_busy = False
        self._error: Exception | None = None

    def submit(self, name: str, write: Callable[[], None]) -> None:
        """Do a write later.

        Raises:
            Exception: that of an earlier write.
        """
        with self._changed:
            self._raise()
            self._writes[name] = write
            if not self._is_busy:
                self._is_busy = True
                threading.Thread(target=self._run, daemon=True).start()

    @property
    def is_busy(self) -> bool:
        """Whether a write is being done, or waits."""
        with self._changed:
            return self._is_busy

    def drain(self, seconds: float | None = None) -> None:
        """Wait until all writes are done, or for so many seconds.

        Raises:
            Exception: that of a write.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._is_busy, seconds)
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._writes:
                    self._is_busy = False
                    self._changed.notify_all()
                    return
                write = self._writes.pop(next(iter(self._writes)))
            try:
                write()
            except Exception as error:  # the training thread raises it at its next write
                with self._changed:
                    self._error = error
