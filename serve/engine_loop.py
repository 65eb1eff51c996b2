"""Continuous batching for one bundle: one thread steps the engine, a small pool decodes audio.

Output is handed to each request's callback at once and never waits in the engine: a slow client delays no other.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from serve.log import log_event
from tinymusician.errors import EngineError, first_line
from tinymusician.runtime.codec import StreamingDecoder
from tinymusician.runtime.engine import Codes, EngineRequest
from tinymusician.runtime.errors import as_engine_error
from tinymusician.runtime.generator import CHUNK, FIRST_CHUNK, MusicGenerator

_CODEC_THREADS = 2
Samples = npt.NDArray[np.float32]
AudioOutput = Samples | EngineError | None
"""The next samples; None at the end; or the error that ended the request. Nothing follows an error or None."""


class RequestHandle:
    """One running request. Its audio is decoded in order in the loop's thread pool while the engine steps on."""

    def __init__(
        self,
        generator: MusicGenerator,
        request: EngineRequest,
        on_output: Callable[[AudioOutput], None],
        buffered: bool,
        loop: EngineLoop,
    ) -> None:
        """With `buffered`, all samples come at once at the end, which costs less decoding time."""
        self._generation, self._audio, self._on_output = (
            generator.start_prepared(request),
            StreamingDecoder(generator.codec),
            on_output,
        )
        self._frame_rate, self._loop = generator.codec.shape.frame_rate, loop
        self._next_decode = math.inf if buffered else FIRST_CHUNK * self._frame_rate
        self._decoding: Future[None] | None = None
        self.is_finished = False
        self.began = time.monotonic()
        self.seconds = request.frames / self._frame_rate

    def cancel(self) -> None:
        """Cancel the request and free its batch rows. Thread-safe and idempotent."""
        self._generation.cancel()

    def poll(self) -> None:
        """After an engine step: schedule decoding of the frames that are ready. Sets `is_finished` at the end."""
        try:
            self._generation.advance()
        except Exception as error:  # fails this request only
            self.fail(error)
        if self._generation.is_finished:
            self.is_finished = True
            if self._generation.error is not None:
                self._on_output(self._generation.error)
            elif self._generation.frames_ready == self._generation.frames:
                self._schedule_decoding(last=True)
        elif self._generation.frames_ready >= self._next_decode:
            self._next_decode = self._generation.frames_ready + CHUNK * self._frame_rate
            self._schedule_decoding(last=False)

    def fail(self, error: Exception) -> None:
        """End the request with an error."""
        self._generation.cancel()
        self._on_output(as_engine_error("a request", error))

    def _schedule_decoding(self, last: bool) -> None:
        self._decoding = self._loop.pool.submit(self._decode, self._generation.codes, last, self._decoding)

    def _decode(self, codes: Codes, last: bool, before: Future[None] | None) -> None:
        """Decode the samples that `codes` determine, after those of `before`."""
        if before is not None:
            before.result()  # cannot deadlock: the pool runs tasks in submission order
        try:
            self._on_output(self._audio.feed(codes, last))
        except Exception as error:  # fails this request only
            self.fail(error)
            return
        if last:
            self._on_output(None)
            self._loop.on_complete(self)


class EngineLoop:
    """Runs requests until it is closed and the last one is finished."""

    def __init__(
        self, generator: MusicGenerator, on_complete: Callable[[RequestHandle], None] = lambda handle: None
    ) -> None:
        """`on_complete` is called for every request that completes, on a thread of the pool."""
        self.generator, self.on_complete = generator, on_complete
        self.pool = ThreadPoolExecutor(_CODEC_THREADS, "codec")
        self._requests: list[RequestHandle] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def num_requests(self) -> int:
        """How many requests run or wait."""
        with self._changed:
            return len(self._requests)

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    def submit(
        self, request: EngineRequest, on_output: Callable[[AudioOutput], None], buffered: bool = False
    ) -> RequestHandle:
        """Start a request; `on_output` receives its samples as they become ready, or with `buffered` all at once.

        Raises:
            EngineError: the loop is closed.
            RequestError: the length does not fit the decoder.
        """
        with self._changed:
            if self._closed:
                raise EngineError("the engine is closed")
            handle = RequestHandle(self.generator, request, on_output, buffered, self)
            self._requests.append(handle)
            self._changed.notify()
        return handle

    def close(self) -> None:
        """Accept no more requests; those that run are completed."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        try:
            while handles := self._wait_for_requests():
                self._step(handles)
        except BaseException as error:  # no `Exception`, as a library's panic: health reports that the thread ends
            self.close()
            for handle in self._requests:
                handle.fail(EngineError(f"the engine's thread has ended ({first_line(error)})"))
            log_event("engine_ended", error=first_line(error))
        self.pool.shutdown(wait=False)

    def _step(self, handles: list[RequestHandle]) -> None:
        try:
            self.generator.engine.step()
        except Exception as error:  # the engine handles ONNX Runtime's errors; a bug in it must not end the thread
            for handle in handles:
                handle.fail(error)
        for handle in handles:
            handle.poll()
        with self._changed:
            self._requests = [handle for handle in self._requests if not handle.is_finished]

    def _wait_for_requests(self) -> list[RequestHandle]:
        """The current requests; blocks until there is one. Empty if the loop is closed and idle."""
        with self._changed:
            while not self._requests and not self._closed:
                self._changed.wait()
            return list(self._requests)
