"""The front: who asks is let in by key and place, and gets the audio, whole or while it is made."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import cast

import numpy as np
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serve.admission import ConcurrencyLimiter, OverloadedError
from serve.api_keys import ApiKey, ApiKeyAuthenticator, AuthenticationError, RateLimitError
from serve.config import ServeConfig
from serve.encoders import MEDIA_TYPES, Samples, encoder, wave_size
from serve.errors import ApiError
from serve.generation_task import EngineClient, EngineDeadError, GenerationTask
from serve.log import log_event
from serve.metrics import IngressMetrics
from serve.schemas import LARGEST_SEED, CreateAudioRequest, ModelInfo, ModelList, StreamMetadata

DOWNLOADS = 8
"""Files of the bundle that are sent at once."""
_READY_SECONDS, _STALE_SECONDS = 5.0, 60.0
_BINARY = "application/octet-stream"


class Ingress:
    """Answers requests, with engines behind it."""

    def __init__(self, engines: EngineClient, settings: ServeConfig) -> None:
        """A front for these engines.

        Raises:
            KeyFileError: the settings' file of keys is none.
        """
        self._engines, self._limits = engines, settings.limits
        self._gate, self._limiter, self.metrics = (
            ApiKeyAuthenticator(settings.api_keys),
            ConcurrencyLimiter(settings.limits.max_concurrent_requests),
            IngressMetrics(),
        )
        self._downloads = ConcurrencyLimiter(DOWNLOADS)
        self._model: tuple[float, ModelInfo] | None = None

    def authenticate(self, authorization: str | None) -> ApiKey | None:
        """The key that a request shows.

        Raises:
            Refusal: it shows none that counts, and one is needed.
        """
        try:
            return self._gate.authenticate(authorization)
        except AuthenticationError as error:
            raise ApiError(401, "unauthorized", str(error)) from None

    async def models(self) -> ModelList:
        """What is played here.

        Raises:
            Refusal: no engine is ready.
        """
        try:
            async with asyncio.timeout(_READY_SECONDS):
                model = await self._engines.about()
        except TimeoutError:  # engines that are busy let this wait its turn like any request
            if self._model is None or time.monotonic() - self._model[0] > _STALE_SECONDS:
                raise _not_ready() from None
            return ModelList(data=(self._model[1],))
        except EngineDeadError:
            raise _not_ready() from None
        self._model = time.monotonic(), model
        return ModelList(data=(model,))

    async def file(self, digest: str, path: str, key: ApiKey | None) -> Response:
        """A file of the bundle that plays; under its digest it never changes.

        Raises:
            Refusal: another bundle plays by now, or no engine is ready.
            NotFound: the same, said by the engine.
        """
        held = self._entered(self._downloads, key)
        parts = self._engines.file(digest, path)
        try:
            async with asyncio.timeout(_READY_SECONDS):
                size = await anext(parts)
        except (EngineDeadError, TimeoutError):
            held.close()
            raise _not_ready() from None
        except BaseException:
            held.close()
            raise
        headers = {"Content-Length": str(size), "Cache-Control": "private, max-age=31536000, immutable"}
        body = cast(AsyncIterator[bytes], parts)
        return AudioStreamingResponse(body, headers, _BINARY, held.close, self._limits.request_timeout_s)

    def _entered(self, limiter: ConcurrencyLimiter, key: ApiKey | None) -> contextlib.ExitStack:
        """A place and one of the key's requests, until they are closed."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(limiter.entered())
                held.enter_context(self._gate.entered(key))
            except RateLimitError as error:
                raise ApiError(429, "rate_limited", str(error), wait=error.wait) from None
            except OverloadedError as error:
                raise ApiError(429, "busy", str(error), wait=error.wait) from None
            return held.pop_all()

    async def generate(self, body: CreateAudioRequest, key: ApiKey | None) -> Response:
        """The audio.

        Raises:
            Refusal: it cannot be had, or not now.
        """
        began = time.monotonic()
        seed = secrets.randbelow(LARGEST_SEED) if body.seed is None else body.seed
        performance = self._begun(body, seed, key)
        try:
            heading = await performance.fetch()
            first = await performance.fetch()
            assert isinstance(heading, StreamMetadata)
            assert isinstance(first, bytes)
            if body.stream:
                self.metrics.first_audio.observe(time.monotonic() - began)
            headers = {"X-Seed": str(seed), "X-Bundle": heading.digest}
            if heading.version is not None:
                headers["X-Bundle-Version"] = str(heading.version)
            if body.stream:
                return self._stream(body, performance, heading, first, headers)
            parts = [first, *await performance.rest()]
            took, lasts = time.monotonic() - began, heading.samples / heading.rate
            headers["X-Real-Time-Factor"] = f"{took / lasts:.3f}"
            content = await asyncio.to_thread(_encoded, body, heading, parts)
            return Response(content, headers=headers, media_type=MEDIA_TYPES[body.format])
        except BaseException:
            performance.stop()
            raise

    def _begun(self, body: CreateAudioRequest, seed: int, key: ApiKey | None) -> GenerationTask:
        """The piece on its way; key and place are held as long as it is played."""
        began = time.monotonic()
        generation = body.to_generation_request(seed, self._limits.seconds, self._limits.prompt)
        held = self._entered(self._limiter, key)

        def ended(whole: bool) -> None:
            held.close()
            self._limiter.took(time.monotonic() - began)
            took = time.monotonic() - began
            self.metrics.requests_in_flight.set(self._limiter.taken)
            if performance.losses:
                self.metrics.losses.inc(performance.losses)
            if whole:
                self.metrics.whole.observe(took)
            log_event(
                "played",
                whole=whole,
                seconds=round(took, 3),
                attempts=performance.attempts,
                key=key.id if key else None,
            )

        self.metrics.requests_in_flight.set(self._limiter.taken)
        performance = GenerationTask(self._engines, generation, self._limits.request_timeout_s, not body.stream, ended)
        return performance

    def _stream(
        self,
        audio_request: CreateAudioRequest,
        performance: GenerationTask,
        heading: StreamMetadata,
        first: bytes,
        headers: dict[str, str],
    ) -> Response:
        async def body() -> AsyncIterator[bytes]:
            file = encoder(audio_request.format, heading.rate, heading.samples)
            yield file.feed(_samples(first))
            while isinstance(part := await performance.fetch(), bytes):
                yield file.feed(_samples(part))
            yield file.end()

        if audio_request.format == "wav":
            headers = {**headers, "Content-Length": str(wave_size(heading.samples))}
        return AudioStreamingResponse(
            body(), headers, MEDIA_TYPES[audio_request.format], performance.stop, 2 * self._limits.request_timeout_s
        )


class AudioStreamingResponse(StreamingResponse):
    """A body that is sent while it is made."""

    def __init__(
        self, body: AsyncIterator[bytes], headers: dict[str, str], media: str, over: Callable[[], None], longest: float
    ) -> None:
        """However it ends, `over` is called; after `longest` seconds it is broken off."""
        super().__init__(body, headers=headers, media_type=media)
        self._over, self._longest = over, longest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._longest):
                await super().__call__(scope, receive, send)
        finally:
            self._over()


def _not_ready() -> ApiError:
    return ApiError(503, "not_ready", "no engine is ready", wait=_READY_SECONDS)


def _samples(part: bytes) -> Samples:
    return np.frombuffer(part, np.float32)


def _encoded(body: CreateAudioRequest, heading: StreamMetadata, parts: list[bytes]) -> bytes:
    file = encoder(body.format, heading.rate, heading.samples)
    return b"".join([*(file.feed(_samples(part)) for part in parts), file.end()])
