"""A piece that is played for somebody, in a task of its own: what was played waits here until it is fetched.

An engine that is lost before anything was fetched of its audio is nobody's loss: the piece begins again elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

from serve.errors import ApiError, refused
from serve.log import log_event, request_id
from serve.schemas import ModelInfo, StreamMetadata
from tinymusician.errors import TinyMusicianError
from tinymusician.runtime.generator import GenerationRequest

ATTEMPTS = 3


class EngineDeadError(Exception):
    """The engine that played has died; another may play the same."""


class EngineClient(Protocol):
    """Those who play. Whoever is lost on the way raises `Lost`."""

    def play(
        self, generation: GenerationRequest, whole: bool, request: str
    ) -> AsyncGenerator[StreamMetadata | bytes, None]:
        """A heading, then samples (float32) as they come or all at once; whoever closes it frees the rows."""

    async def about(self) -> ModelInfo:
        """What they play."""

    def file(self, digest: str, path: str) -> AsyncGenerator[int | bytes, None]:
        """The size of a file of the bundle with this digest, then its bytes."""


class GenerationTask:
    """One piece. `fetch` gives its heading, then its samples, then None."""

    def __init__(
        self,
        engines: EngineClient,
        generation: GenerationRequest,
        timeout: float,
        whole: bool,
        ended: Callable[[bool], None],
    ) -> None:
        """Begin to play. `ended` is called once, when it plays no more, and hears whether all was played.

        With `whole` nothing is fetched until all is there, so a lost engine can be replaced until the end.
        """
        self._engines, self._generation, self._whole, self._timeout = engines, generation, whole, timeout
        self._parts: asyncio.Queue[StreamMetadata | bytes | ApiError | None] = asyncio.Queue()
        self.attempts, self.losses, self._given, self._complete = 0, 0, False, False
        self._task = asyncio.create_task(self._play())
        self._task.add_done_callback(lambda _: self._end(ended))  # one that is cancelled at once runs no `finally`

    async def fetch(self) -> StreamMetadata | bytes | None:
        """What comes next.

        Raises:
            Refusal: nothing more will.
        """
        part = await self._parts.get()
        if isinstance(part, ApiError):
            raise part
        return part

    async def rest(self) -> list[bytes]:
        """All samples that are still to come."""
        parts = []
        while isinstance(part := await self.fetch(), bytes):
            parts.append(part)
        return parts

    def stop(self) -> None:
        """Play no more: whoever wanted it has gone, or has it."""
        self._task.cancel()

    def _end(self, ended: Callable[[bool], None]) -> None:
        if not self._complete:  # whoever still waits is told, also if somebody else cancelled the task
            self._parts.put_nowait(ApiError(503, "failed", "playing was broken off", wait=5))
        ended(self._complete)

    async def _play(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                self._complete = await self._somewhere()
        except TimeoutError:
            self._parts.put_nowait(ApiError(504, "too_slow", f"not done within {self._timeout:g} seconds", wait=5))
        except TinyMusicianError as error:
            self._parts.put_nowait(refused(error))
        except Exception as error:
            log_event("unforeseen", error=f"{type(error).__name__}: {error}")
            self._parts.put_nowait(ApiError(500, "failed", "something went wrong here; the log says what"))

    async def _somewhere(self) -> bool:
        """Play it with one engine, or with another; returns whether it came to its end."""
        for self.attempts in range(1, ATTEMPTS + 1):
            try:
                await self._once()
            except EngineDeadError as error:
                self.losses += 1
                log_event("engine_lost", attempt=self.attempts, error=str(error))
                if self._given:
                    break
            else:
                self._parts.put_nowait(None)
                return True
        self._parts.put_nowait(ApiError(503, "failed", "the engine that played was lost", wait=5))
        return False

    async def _once(self) -> None:
        held: list[StreamMetadata | bytes] = []
        async with aclosing(self._engines.play(self._generation, self._whole, request_id.get())) as parts:
            async for part in parts:
                held.append(part)
                if not self._whole and isinstance(part, bytes):
                    self._give(held)
        self._give(held)

    def _give(self, held: list[StreamMetadata | bytes]) -> None:
        for part in held:
            self._parts.put_nowait(part)
        held.clear()
        self._given = True
