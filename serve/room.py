"""Where pieces are played side by side: one bundle, one thread that steps its engine, and listeners on other threads.

What was played waits with the listener, never in the engine: somebody who reads slowly holds up nobody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tinymusician.errors import EngineError
from tinymusician.runtime.codec import AudioStream
from tinymusician.runtime.engine import Request
from tinymusician.runtime.failure import as_engine_error
from tinymusician.runtime.player import CHUNK, FIRST_CHUNK, Player

Samples = npt.NDArray[np.float32]
Heard = Samples | EngineError | None
"""Samples that came next; None when all have come, or what went wrong: after either nothing comes."""


class Seat:
    """One piece in the room. `hear` is called by the room's thread, and must not wait."""

    def __init__(self, player: Player, request: Request, hear: Callable[[Heard], None]) -> None:
        self._track, self._audio, self._hear = player.track(request), AudioStream(player.codec), hear
        self._rate = player.codec.shape.frame_rate
        self._due, self._left = FIRST_CHUNK * self._rate, False
        self.began = time.monotonic()
        self.seconds = request.frames / self._rate

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""
        return self._left

    @property
    def whole(self) -> bool:
        """Whether all of it was played."""
        return self._left and self._track.error is None and self._track.frames_ready == self._track.frames

    def leave(self) -> None:
        """Give up; the rows are free at once. May be called from any thread, and again."""
        self._track.cancel()

    def attend(self) -> None:
        """After a step of the engine: pass on what is ready."""
        try:
            self._track.advance()
            if self._track.finished:
                self._finish()
            elif self._track.frames_ready >= self._due:
                self._due = self._track.frames_ready + CHUNK * self._rate
                self._hear(self._audio.feed(self._track.codes, last=False))
        except Exception as error:  # this piece is lost, the others play on
            self._track.cancel()
            self._end(as_engine_error("a piece", error))

    def _finish(self) -> None:
        if self._track.error is not None:
            self._end(self._track.error)
        elif self._track.frames_ready == self._track.frames:
            self._hear(self._audio.feed(self._track.codes, last=True))
            self._end(None)
        else:
            self._left = True  # whoever left hears nothing

    def _end(self, heard: EngineError | None) -> None:
        self._left = True
        self._hear(heard)


class Room:
    """Plays until it is closed and the last piece is over."""

    def __init__(self, player: Player, done: Callable[[Seat], None] = lambda seat: None) -> None:
        """`done` hears of every piece that is over, on the room's thread."""
        self.player = player
        self._done = done
        self._seats: list[Seat] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._play, name="room", daemon=True)
        self._thread.start()

    @property
    def seats(self) -> int:
        """How many pieces play or wait for their turn."""
        with self._changed:
            return len(self._seats)

    @property
    def alive(self) -> bool:
        """Whether somebody plays here still."""
        return self._thread.is_alive()

    def join(self, request: Request, hear: Callable[[Heard], None]) -> Seat:
        """Let a piece begin.

        Raises:
            EngineError: the room was closed.
            RequestError: its length does not fit the decoder.
        """
        with self._changed:
            if self._closed:
                raise EngineError("the room is closed")
            seat = Seat(self.player, request, hear)
            self._seats.append(seat)
            self._changed.notify()
        return seat

    def close(self) -> None:
        """Let nobody in any more; those who are in are played to their end."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _play(self) -> None:
        while seats := self._present():
            self.player.engine.step()
            for seat in seats:
                seat.attend()
                if seat.over:
                    self._done(seat)
            with self._changed:
                self._seats = [seat for seat in self._seats if not seat.over]

    def _present(self) -> list[Seat]:
        """Those who are here; waits until there is somebody, or the room is closed and empty."""
        with self._changed:
            while not self._seats and not self._closed:
                self._changed.wait()
            return list(self._seats)
