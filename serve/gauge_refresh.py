"""Keeps gauges visible: Ray stops exporting one two export intervals (20 s) after its last `set`."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tinymusician.errors import EngineError

_SECONDS = 5.0


class GaugeRefresh:
    """Calls `update`, which sets gauges, now and every few seconds until it is closed."""

    def __init__(self, update: Callable[[], None], seconds: float = _SECONDS) -> None:
        self._update, self._seconds, self._closed = update, seconds, threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="gauge-refresh", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Check that the gauges are set.

        Raises:
            EngineError: the thread that does it has ended.
        """
        if not self._thread.is_alive() and not self._closed.is_set():
            raise EngineError("the thread that sets the gauges has ended")

    def close(self) -> None:
        """Stop; `update` is not called again."""
        self._closed.set()
        self._thread.join()

    def _repeat(self) -> None:
        while True:
            self._update()
            if self._closed.wait(self._seconds):
                return
