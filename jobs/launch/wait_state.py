"""Keeps a run's state WAITING while its workers wait for CPUs or GPUs, with what they wait for."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence

from jobs.launch.shortage import Shortage
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import TinyMusicianError

_FIRST_SECONDS, _POLL_SECONDS = 3.0, 10.0


class WaitState:
    """A thread of a run's supervisor. It asks the cluster only while the run makes no progress."""

    def __init__(
        self, run: RunStore, is_owner: Callable[[], bool], shortages: Callable[[], Sequence[Shortage]]
    ) -> None:
        """`is_owner` tells whether this process is still the run's supervisor; `shortages` asks the cluster."""
        self._run, self._is_owner, self._shortages = run, is_owner, shortages
        self._text, self._progress = "", run.progress()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> WaitState:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, before anything else writes the run's state."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        seconds = _FIRST_SECONDS
        while not self._stop.wait(seconds):
            seconds = _FIRST_SECONDS if self._text else _POLL_SECONDS
            try:
                self.update()
            except TinyMusicianError as error:
                print(f"state: {error}", file=sys.stderr)

    def update(self) -> None:
        """Ask the cluster, unless the run has made progress, and change the run's state if the answer has changed."""
        progress, before = self._run.progress(), self._progress
        self._progress = progress
        text = "; ".join(str(shortage) for shortage in self._shortages()) if progress == before else ""
        if text == self._text or not self._is_owner():
            return
        self._run.wait(text) if text else self._run.proceed()
        self._text = text
