"""Notices that a training hangs: a phase takes much longer than ever before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

FIRST_FACTOR, LATER_FACTOR = 5.0, 10.0
"""A phase may take the limit, or so many times what it has taken; the first of its kind so many times the limit."""
CHECKPOINT_SECONDS = 900.0
"""Workers wait for one of them that writes a checkpoint, whose store may not respond for ten minutes."""


@dataclass(frozen=True)
class Stall:
    """A worker that has been in one phase of a step for too long."""

    phase: str
    step: int
    seconds: float


class Watchdog:
    """Watches the phases of one worker from a thread of its own, and calls `on_stall` once if one does not end."""

    def __init__(self, seconds: float, on_stall: Callable[[Stall], None]) -> None:
        """`seconds` is the least time that counts as a hang."""
        self._seconds, self._on_stall = seconds, on_stall
        self._longest: dict[str, float] = {}
        self._changed = threading.Condition()
        self._current: tuple[str, int, float] | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @contextmanager
    def phase(self, name: str, step: int) -> Iterator[None]:
        """A phase of a step: it must end in time."""
        self._set((name, step, time.monotonic()))
        try:
            yield
        finally:
            began = self._current[2] if self._current is not None else time.monotonic()
            self._set(None)
        self._longest[name] = max(self._longest.get(name, 0.0), time.monotonic() - began)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """A part of a phase that may take any time, such as waiting for data."""
        paused, began = self._current, time.monotonic()
        self._set(None)
        try:
            yield
        finally:
            if paused is not None:
                phase, step, start = paused
                self._set((phase, step, start + time.monotonic() - began))

    def close(self) -> None:
        """Stop watching."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _set(self, current: tuple[str, int, float] | None) -> None:
        with self._changed:
            self._current = current
            self._changed.notify()

    def _limit(self, phase: str) -> float:
        if phase == "checkpoint":
            return max(CHECKPOINT_SECONDS, self._seconds)
        if phase not in self._longest:
            return FIRST_FACTOR * self._seconds
        return max(self._seconds, LATER_FACTOR * self._longest[phase])

    def _watch(self) -> None:
        with self._changed:
            while not self._is_closed:
                watched = self._current
                if watched is None:
                    self._changed.wait()
                    continue
                phase, step, began = watched
                left = began + self._limit(phase) - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            else:
                return
        self._on_stall(Stall(phase, step, time.monotonic() - began))
