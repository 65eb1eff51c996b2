"""Runs one request in an asyncio task of its own and buffers its output until the client reads it.

If an engine dies before any audio was sent, the request is retried on another engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Protocol, TypeVar

from serve.byte_range import ByteRange
from serve.encoders import Samples
from serve.errors import ApiError, request_error
from serve.log import log_event, request_id
from serve.schemas import AudioAnswers, ClipRanking, ModelInfo, QuestionModelInfo, StreamMetadata
from tinymusician.errors import TinyMusicianError
from tinymusician.runtime.generator import GenerationRequest

ATTEMPTS = 3
_Result = TypeVar("_Result")


class EngineDeadError(Exception):
    """The engine died; another engine can run the same request."""


class EngineClient(Protocol):
    """Access to the engine replicas. Every method raises `EngineDeadError` if its replica dies."""

    def generate(
        self, request: GenerationRequest, buffered: bool, request_id: str
    ) -> AsyncGenerator[StreamMetadata | bytes, None]:
        """Yield the stream's metadata, then float32 samples: in chunks, or with `buffered` all at once.

        Closing the generator cancels the request.
        """

    async def about(self) -> ModelInfo:
        """Describe the loaded bundle."""

    def file(self, digest: str, path: str, part: ByteRange) -> AsyncGenerator[int | bytes, None]:
        """Yield the size of a file of the bundle with this digest, then the bytes of a part of it."""


class AnswerClient(Protocol):
    """Access to the replicas that answer questions. Raises `EngineDeadError` if its replica dies."""

    async def ask(
        self, audio: bytes, name: str, question: str | None, options: Sequence[str], request_id: str
    ) -> AudioAnswers:
        """Answer a question about an uploaded file, or without one those about all attributes."""

    async def rank(self, prompt: str, waves: Sequence[Samples], rate: int, request_id: str) -> ClipRanking:
        """Rank clips of a prompt, float32 at `rate` Hz; without clips, only check that it can be done."""

    async def about(self) -> QuestionModelInfo:
        """Describe the loaded bundle."""

    def file(self, digest: str, path: str, part: ByteRange) -> AsyncGenerator[int | bytes, None]:
        """Yield the size of a file of the bundle with this digest, then the bytes of a part of it."""


async def with_retries(call: Callable[[], Awaitable[_Result]]) -> _Result:
    """Call a replica; if it dies, call another one.

    Raises:
        ApiError: all died.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await call()
        except EngineDeadError as error:
            log_event("engine_lost", attempt=attempt, error=str(error))
    raise ApiError(503, "failed", "the engine was lost", retry_after=5)


class GenerationTask:
    """One request. `next` returns its metadata, then its samples, then None."""

    def __init__(
        self,
        engines: EngineClient,
        request: GenerationRequest,
        timeout: float,
        buffered: bool,
        on_end: Callable[[bool], None],
    ) -> None:
        """Start the request. `on_end` is called once, when it ends, with whether it completed.

        With `buffered`, output is buffered until the request completes, so it can be retried until then.
        """
        self._engines, self._request, self._buffered, self._timeout = engines, request, buffered, timeout
        self._output: asyncio.Queue[StreamMetadata | bytes | ApiError | None] = asyncio.Queue()
        self.attempts, self.engine_failures, self._sent, self._complete = 0, 0, False, False
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda _: self._end(on_end))  # a task cancelled at once runs no `finally`

    async def next(self) -> StreamMetadata | bytes | None:
        """The next part of the output; None at its end.

        Raises:
            ApiError: the request failed.
        """
        part = await self._output.get()
        if isinstance(part, ApiError):
            raise part
        return part

    async def remaining(self) -> list[bytes]:
        """All samples that are still to come."""
        parts = []
        while isinstance(part := await self.next(), bytes):
            parts.append(part)
        return parts

    def cancel(self) -> None:
        """Cancel the request; without effect after its end."""
        self._task.cancel()

    def _end(self, on_end: Callable[[bool], None]) -> None:
        if not self._complete:  # wakes a reader even if something else cancelled the task
            self._output.put_nowait(ApiError(503, "failed", "the request was cancelled", retry_after=5))
        on_end(self._complete)

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                self._complete = await self._run_with_retries()
        except TimeoutError:
            self._output.put_nowait(
                ApiError(504, "timeout", f"not done within {self._timeout:g} seconds", retry_after=5)
            )
        except TinyMusicianError as error:
            self._output.put_nowait(request_error(error))
        except Exception as error:
            log_event("unexpected_error", error=f"{type(error).__name__}: {error}")
            self._output.put_nowait(ApiError(500, "failed", "internal error; see the endpoint's log"))

    async def _run_with_retries(self) -> bool:
        """Run the request; returns whether it completed."""
        for self.attempts in range(1, ATTEMPTS + 1):
            try:
                await self._run_once()
            except EngineDeadError as error:
                self.engine_failures += 1
                log_event("engine_lost", attempt=self.attempts, error=str(error))
                if self._sent:
                    break
            else:
                self._output.put_nowait(None)
                return True
        self._output.put_nowait(ApiError(503, "failed", "the engine was lost", retry_after=5))
        return False

    async def _run_once(self) -> None:
        parts: list[StreamMetadata | bytes] = []
        async with aclosing(self._engines.generate(self._request, self._buffered, request_id.get())) as stream:
            async for part in stream:
                parts.append(part)
                if not self._buffered and isinstance(part, bytes):
                    self._send(parts)
        self._send(parts)

    def _send(self, parts: list[StreamMetadata | bytes]) -> None:
        for part in parts:
            self._output.put_nowait(part)
        parts.clear()
        self._sent = True
