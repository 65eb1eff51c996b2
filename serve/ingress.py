"""Authenticates and admits requests, then returns or streams the audio."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import cast
from urllib.parse import quote

import numpy as np
from starlette.datastructures import Headers
from starlette.responses import Response

from serve.admission import ConcurrencyLimiter, OverloadedError
from serve.api_keys import ApiKey, ApiKeyAuthenticator, AuthenticationError, RateLimitError
from serve.byte_range import ByteRange, content_range, parse_range
from serve.config import ServeConfig
from serve.download_proxy import FOLLOWING
from serve.encoders import MEDIA_TYPES, Samples, open_encoder, wav_size
from serve.errors import ApiError
from serve.generation_task import AnswerClient, EngineClient, EngineDeadError, GenerationTask, with_retries
from serve.key_usage import KeyUsage, usage_file
from serve.log import log_event, request_id
from serve.metrics import IngressMetrics
from serve.schemas import (
    MAX_SEED,
    AudioAnswers,
    ClipRanking,
    CreateAudioRequest,
    ErrorCode,
    ModelList,
    QuestionModelInfo,
    StreamMetadata,
)
from serve.streaming_response import AudioStreamingResponse
from tinymusician.errors import NotFoundError

MAX_DOWNLOADS = 8
"""Bundle files that are sent concurrently."""
_READY_SECONDS, _STALE_SECONDS = 5.0, 60.0
_FRESH_SECONDS = 1.0
"""How long a description of the bundles is given again without asking an engine."""
_RESTART_SECONDS = 30.0
"""When to try again an endpoint that stops: another one may have started."""
_BINARY = "application/octet-stream"
_MAX_UNKNOWN_WORDS = 20


class Ingress:
    """Handles the endpoint's requests in front of the engines."""

    def __init__(self, engines: EngineClient, config: ServeConfig, answers: AnswerClient | None = None) -> None:
        """Create an ingress for these engines; `answers` is None if the endpoint answers no questions.

        Raises:
            KeyFileError: the configured file of API keys cannot be read.
        """
        self._engines, self._limits, self._answers = engines, config.limits, answers
        self.has_api_keys = config.api_keys is not None
        self._authenticator = ApiKeyAuthenticator(config.api_keys)
        self._usage = _key_usage(config)
        self._limiter = ConcurrencyLimiter(config.limits.max_concurrent_requests)
        self._downloads = ConcurrencyLimiter(MAX_DOWNLOADS)
        self._models: ModelList | None = None
        self._models_time = self._request_time = -math.inf
        self._models_lock = asyncio.Lock()
        self._is_stopping = False
        self.metrics = IngressMetrics()

    def authenticate(self, authorization: str | None) -> ApiKey | None:
        """The API key of a request's Authorization header; None if the endpoint needs none.

        Raises:
            ApiError: a key is needed, and this one is missing or invalid.
        """
        try:
            key = self._authenticator.authenticate(authorization)
        except AuthenticationError as error:
            raise ApiError(401, "unauthorized", str(error)) from None
        if key is not None and self._usage is not None:
            self._usage.record(key.id)
        return key

    def stop_admitting(self) -> None:
        """Refuse new requests from now on: the endpoint stops when those that run are complete."""
        self._is_stopping = True

    @property
    def is_idle(self) -> bool:
        """Whether no request runs."""
        return self._limiter.taken == 0 and self._downloads.taken == 0

    def _check_admits(self) -> None:
        """Check that the endpoint is not stopping.

        Raises:
            ApiError: it is.
        """
        if self._is_stopping:
            state = "idle" if self.is_idle else "requests run"
            raise ApiError(503, "stopping", f"the endpoint stops ({state})", retry_after=_RESTART_SECONDS)

    async def models(self) -> ModelList:
        """The bundles that generate and that answer questions.

        Engines get one such request at a time, and one a second at most, whatever comes of it.

        Raises:
            ApiError: no engine is ready, or the endpoint stops.
        """
        self._check_admits()
        async with self._models_lock:
            if time.monotonic() - self._request_time >= _FRESH_SECONDS:
                await self._update_models()
                self._request_time = time.monotonic()
        if self._models is None or time.monotonic() - self._models_time > _STALE_SECONDS:
            raise _not_ready()
        return self._models

    async def _update_models(self) -> None:
        """Ask an engine. A busy one queues this like any request, so what it last said remains for a while."""
        try:
            async with asyncio.timeout(_READY_SECONDS):
                model, questions = await asyncio.gather(self._engines.about(), self._question_model())
        except TimeoutError:
            return
        except EngineDeadError:
            self._models = None
            return
        self._models, self._models_time = ModelList(data=(model,), questions=questions), time.monotonic()

    async def _question_model(self) -> QuestionModelInfo | None:
        """The bundle that answers questions; None while none does: music is generated all the same."""
        if self._answers is None:
            return None
        try:
            async with asyncio.timeout(_READY_SECONDS / 2):
                return await self._answers.about()
        except (TimeoutError, EngineDeadError):
            return None

    async def file(self, digest: str, path: str, headers: Headers, is_head: bool, key: ApiKey | None) -> Response:
        """A file of a loaded bundle, or a part of it (`Range`). Under its digest it never changes.

        A key's rate counts a download once: not the pieces that Ray's proxy asks for (`download_proxy`). They are given
        also while the endpoint stops.

        Raises:
            ApiError: no engine is ready, or too many downloads run.
            NotFoundError: the bundle is not served (any more), or it has no such file.
        """
        tag = f'"{digest}"'
        part = parse_range(headers.get("range")) if headers.get("if-range", tag) == tag else None
        is_following = FOLLOWING.decode() in headers
        slots = contextlib.ExitStack() if is_following else self._admit(self._downloads, key)
        try:
            async with asyncio.timeout(_READY_SECONDS):
                parts, size = await self._open_file(digest, path, part or ByteRange())
        except (EngineDeadError, TimeoutError):
            slots.close()
            raise _not_ready() from None
        except BaseException:
            slots.close()
            raise
        about = {"Accept-Ranges": "bytes", "ETag": tag, "Cache-Control": "private, max-age=31536000, immutable"}
        span = (part or ByteRange()).within(size)
        if part is not None and span is None:
            await parts.aclose()
            slots.close()
            return Response(status_code=416, headers={**about, "Content-Range": f"bytes */{size}"})
        start, stop = span or (0, 0)
        about["Content-Length"] = str(stop - start)
        if part is not None:
            about["Content-Range"] = content_range(start, stop, size)
        status = 200 if part is None else 206
        if is_head:
            await parts.aclose()
            slots.close()
            return Response(status_code=status, headers=about, media_type=_BINARY)
        body, timeout = cast(AsyncIterator[bytes], parts), self._limits.request_timeout_s
        return AudioStreamingResponse(body, about, _BINARY, slots.close, timeout, status)

    async def _open_file(
        self, digest: str, path: str, part: ByteRange
    ) -> tuple[AsyncGenerator[int | bytes, None], int]:
        """A part of a file and the size of all, from whoever has loaded its bundle."""
        parts = self._engines.file(digest, path, part)
        try:
            return parts, int(await anext(parts))
        except NotFoundError:
            if self._answers is None:
                raise
        parts = self._answers.file(digest, path, part)
        return parts, int(await anext(parts))

    def update_gauges(self) -> None:
        """Set the gauges to what is true now, and save when keys were used."""
        if self._usage is not None:
            self._usage.save()
        self.metrics.requests_in_flight.set(self._limiter.taken)

    def _admit(self, limiter: ConcurrencyLimiter, key: ApiKey | None) -> contextlib.ExitStack:
        """Occupy a slot of the limiter and one of the key's, until the result is closed."""
        self._check_admits()
        with contextlib.ExitStack() as slots:
            try:
                slots.enter_context(limiter.slot())
                slots.enter_context(self._authenticator.slot(key))
            except (RateLimitError, OverloadedError) as error:
                reason: ErrorCode = "rate_limited" if isinstance(error, RateLimitError) else "busy"
                log_event("request_refused", reason=reason, key=key.id if key else None)
                raise ApiError(429, reason, str(error), retry_after=error.retry_after) from None
            return slots.pop_all()

    async def generate(self, body: CreateAudioRequest, key: ApiKey | None) -> Response:
        """Generate audio.

        Raises:
            ApiError: the request is invalid, was refused, or failed.
        """
        began = time.monotonic()
        seed = secrets.randbelow(MAX_SEED) if body.seed is None else body.seed
        if body.best_of > 1:
            return await self._generate_best(body, seed, key)
        task = self._start(body, seed, key)
        try:
            metadata = await task.next()
            first = await task.next()
            assert isinstance(metadata, StreamMetadata)
            assert isinstance(first, bytes)
            headers = _headers(seed, metadata)
            if body.stream:
                self.metrics.first_audio.observe(time.monotonic() - began)
                return self._stream(body, task, metadata, first, headers)
            return await _response(body, metadata, [first, *await task.remaining()], headers, began)
        except BaseException:
            task.cancel()
            raise

    async def _generate_best(self, body: CreateAudioRequest, seed: int, key: ApiKey | None) -> Response:
        """Generate several clips, and return the one that keeps best what the prompt names."""
        if self._answers is None:
            raise _invalid_best_of("this endpoint has no model that ranks (questions_model is null)")
        if body.stream:
            raise _invalid_best_of("clips are ranked when they are complete; leave `stream` out")
        began, tasks = time.monotonic(), list[GenerationTask]()
        await self._rank(body.prompt, [], 1)
        seeds = [(seed + number) % (MAX_SEED + 1) for number in range(body.best_of)]
        try:
            tasks += [self._start(body, one, key) for one in seeds]
            clips = [(await task.next(), await task.remaining()) for task in tasks]
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
        metadata = [first for first, _ in clips if isinstance(first, StreamMetadata)]
        waves = [np.concatenate([_samples(part) for part in parts]) for _, parts in clips]
        ranking = await self._rank(body.prompt, waves, metadata[0].rate)
        best, scores = ranking.best, ", ".join(f"{score:.4f}" for score in ranking.scores)
        headers = _headers(seeds[best], metadata[best]) | {"X-Adherence": scores}
        return await _response(body, metadata[best], clips[best][1], headers, began)

    async def _rank(self, prompt: str, waves: Sequence[Samples], rate: int) -> ClipRanking:
        assert self._answers is not None
        answers, timeout = self._answers, self._limits.request_timeout_s
        try:
            async with asyncio.timeout(timeout):
                return await with_retries(lambda: answers.rank(prompt, waves, rate, request_id.get()))
        except TimeoutError:
            raise _timed_out(timeout) from None

    async def ask(
        self,
        read: Callable[[], Awaitable[bytes]],
        name: str,
        question: str | None,
        options: Sequence[str],
        key: ApiKey | None,
    ) -> AudioAnswers:
        """Answer a question about an uploaded file, or without one those about all attributes.

        `read` loads the file into memory, which happens after admission only.

        Raises:
            ApiError: this endpoint answers none, or the request was refused, failed or timed out.
            RequestError: the audio, the question or the options cannot be used.
        """
        if self._answers is None:
            raise ApiError(404, "not_found", "this endpoint answers no questions (questions_model is null)")
        began, timeout = time.monotonic(), self._limits.request_timeout_s
        with self._admit(self._limiter, key):
            self.update_gauges()
            try:
                async with asyncio.timeout(timeout):
                    content, answers = await read(), self._answers
                    return await with_retries(lambda: answers.ask(content, name, question, options, request_id.get()))
            except TimeoutError:
                raise _timed_out(timeout) from None
            finally:
                elapsed = time.monotonic() - began
                self._limiter.record_duration(elapsed)
                log_event("questions_finished", seconds=round(elapsed, 3), key=key.id if key else None)

    def _start(self, body: CreateAudioRequest, seed: int, key: ApiKey | None) -> GenerationTask:
        """Start a request; it occupies its slots until it ends."""
        began = time.monotonic()
        generation = body.to_generation_request(seed, self._limits.seconds, self._limits.prompt)
        slots = self._admit(self._limiter, key)

        def on_end(complete: bool) -> None:
            slots.close()
            elapsed = time.monotonic() - began
            self._limiter.record_duration(elapsed)
            self.update_gauges()
            if task.engine_failures:
                self.metrics.engine_failures.inc(task.engine_failures)
            if complete:
                self.metrics.request_seconds.observe(elapsed)
            log_event(
                "request_finished",
                complete=complete,
                seconds=round(elapsed, 3),
                attempts=task.attempts,
                key=key.id if key else None,
            )

        self.update_gauges()
        task = GenerationTask(self._engines, generation, self._limits.request_timeout_s, not body.stream, on_end)
        return task

    def _stream(
        self,
        audio_request: CreateAudioRequest,
        task: GenerationTask,
        metadata: StreamMetadata,
        first: bytes,
        headers: dict[str, str],
    ) -> Response:
        async def body() -> AsyncIterator[bytes]:
            encoder = open_encoder(audio_request.format, metadata.rate, metadata.samples)
            yield encoder.feed(_samples(first))
            while isinstance(part := await task.next(), bytes):
                yield encoder.feed(_samples(part))
            yield encoder.end()

        if audio_request.format == "wav":
            headers = {**headers, "Content-Length": str(wav_size(metadata.samples))}
        return AudioStreamingResponse(
            body(), headers, MEDIA_TYPES[audio_request.format], task.cancel, 2 * self._limits.request_timeout_s
        )


def _key_usage(config: ServeConfig) -> KeyUsage | None:
    if config.api_keys is None:
        return None
    return KeyUsage(config.api_key_usage or usage_file(config.api_keys))


def _headers(seed: int, metadata: StreamMetadata) -> dict[str, str]:
    """What the response says about its clip."""
    headers = {"X-Seed": str(seed), "X-Bundle": metadata.digest}
    if metadata.version is not None:
        headers["X-Bundle-Version"] = str(metadata.version)
    if metadata.unknown_words:
        headers["X-Unknown-Words"] = ", ".join(quote(word) for word in metadata.unknown_words[:_MAX_UNKNOWN_WORDS])
    return headers


async def _response(
    body: CreateAudioRequest, metadata: StreamMetadata, parts: list[bytes], headers: dict[str, str], began: float
) -> Response:
    """A clip that is complete."""
    elapsed, duration = time.monotonic() - began, metadata.samples / metadata.rate
    headers = {**headers, "X-Real-Time-Factor": f"{elapsed / duration:.3f}"}
    content = await asyncio.to_thread(_encode, body, metadata, parts)
    return Response(content, headers=headers, media_type=MEDIA_TYPES[body.format])


def _invalid_best_of(reason: str) -> ApiError:
    return ApiError(422, "invalid", f"best_of: {reason}", "best_of")


def _timed_out(timeout: float) -> ApiError:
    return ApiError(504, "timeout", f"not done within {timeout:g} seconds", retry_after=5)


def _not_ready() -> ApiError:
    return ApiError(503, "not_ready", "no engine is ready", retry_after=_READY_SECONDS)


def _samples(part: bytes) -> Samples:
    return np.frombuffer(part, np.float32)


def _encode(body: CreateAudioRequest, metadata: StreamMetadata, parts: list[bytes]) -> bytes:
    encoder = open_encoder(body.format, metadata.rate, metadata.samples)
    return b"".join([*(encoder.feed(_samples(part)) for part in parts), encoder.end()])
