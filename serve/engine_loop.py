"""Where pieces are played side by side: one bundle, one thread that steps its engine, and listeners on other threads.

What was played waits with the listener, never in the engine: somebody who reads slowly holds up nobody.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from tinymusician.errors import EngineError
from tinymusician.runtime.codec import StreamingDecoder
from tinymusician.runtime.engine import Codes, EngineRequest
from tinymusician.runtime.errors import as_engine_error
from tinymusician.runtime.generator import CHUNK, FIRST_CHUNK, MusicGenerator

_CODECS = 2
"""Pieces whose codec works at once."""
Samples = npt.NDArray[np.float32]
AudioOutput = Samples | EngineError | None
"""Samples that came next; None when all have come, or what went wrong: after either nothing comes."""


class RequestHandle:
    """One piece in the room. Its codec works in the room's pool, piece by piece in order, while the engine steps on."""

    def __init__(
        self,
        player: MusicGenerator,
        request: EngineRequest,
        hear: Callable[[AudioOutput], None],
        whole: bool,
        loop: EngineLoop,
    ) -> None:
        """With `whole` its samples come together at the end, which takes the codec less time."""
        self._track, self._audio, self._hear = player.track(request), StreamingDecoder(player.codec), hear
        self._rate, self._loop = player.codec.shape.frame_rate, loop
        self._due = math.inf if whole else FIRST_CHUNK * self._rate
        self._decoding: Future[None] | None = None
        self.over = False
        self.began = time.monotonic()
        self.seconds = request.frames / self._rate

    def leave(self) -> None:
        """Give up; the rows are free at once. May be called from any thread, and again."""
        self._track.cancel()

    def attend(self) -> None:
        """After a step of the engine: have sounded what is ready. `over` is when the engine has no more of it."""
        try:
            self._track.advance()
        except Exception as error:  # this piece is lost, the others play on
            self.lose(error)
        if self._track.finished:
            self.over = True
            if self._track.error is not None:
                self._hear(self._track.error)
            elif self._track.frames_ready == self._track.frames:
                self._sound(last=True)
        elif self._track.frames_ready >= self._due:
            self._due = self._track.frames_ready + CHUNK * self._rate
            self._sound(last=False)

    def lose(self, error: Exception) -> None:
        """End this piece for what went wrong with it."""
        self._track.cancel()
        self._hear(as_engine_error("a piece", error))

    def _sound(self, last: bool) -> None:
        self._decoding = self._loop.pool.submit(self._sounded, self._track.codes, last, self._decoding)

    def _sounded(self, codes: Codes, last: bool, before: Future[None] | None) -> None:
        """The samples that `codes` settle, after those that went `before`."""
        if before is not None:
            before.result()  # it began before this one: the pool takes its work in order
        try:
            self._hear(self._audio.feed(codes, last))
        except Exception as error:  # this piece is lost, the others play on
            self.lose(error)
            return
        if last:
            self._hear(None)
            self._loop.done(self)


class EngineLoop:
    """Plays until it is closed and the last piece is over."""

    def __init__(self, player: MusicGenerator, done: Callable[[RequestHandle], None] = lambda handle: None) -> None:
        """`done` hears of every piece that was played to its end, on a thread of the room's."""
        self.player, self.done = player, done
        self.pool = ThreadPoolExecutor(_CODECS, "codec")
        self._seats: list[RequestHandle] = []
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

    def join(self, request: EngineRequest, hear: Callable[[AudioOutput], None], whole: bool = False) -> RequestHandle:
        """Let a piece begin; its samples come as they are settled, or all at once if it is wanted `whole`.

        Raises:
            EngineError: the room was closed.
            RequestError: its length does not fit the decoder.
        """
        with self._changed:
            if self._closed:
                raise EngineError("the room is closed")
            handle = RequestHandle(self.player, request, hear, whole, self)
            self._seats.append(handle)
            self._changed.notify()
        return handle

    def close(self) -> None:
        """Let nobody in any more; those who are in are played to their end."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _play(self) -> None:
        while handles := self._present():
            try:
                self.player.engine.step()
            except Exception as error:  # it catches what ONNX Runtime may do; a fault of its own must not end the room
                for handle in handles:
                    handle.lose(error)
            for handle in handles:
                handle.attend()
            with self._changed:
                self._seats = [handle for handle in self._seats if not handle.over]
        self.pool.shutdown(wait=False)

    def _present(self) -> list[RequestHandle]:
        """Those who are here; waits until there is somebody, or the room is closed and empty."""
        with self._changed:
            while not self._seats and not self._closed:
                self._changed.wait()
            return list(self._seats)
