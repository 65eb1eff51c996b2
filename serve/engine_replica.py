"""An engine behind the endpoint: plays the bundle in a room, and takes a new one when the alias moves.

A new bundle is opened and played once beside the old one. Only then do new pieces begin in its room; those that play
go on in theirs. One that cannot be opened or played is refused, and not looked at again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import replace

import numpy as np

from serve.bundle_source import ResolvedBundle, open_bundle_source
from serve.config import ServeConfig
from serve.engine_loop import AudioOutput, EngineLoop, RequestHandle
from serve.log import log_event, request_id
from serve.metrics import EngineMetrics
from serve.schemas import ModelInfo, StreamMetadata
from tinymusician.errors import BundleError, EngineError, NotFoundError
from tinymusician.runtime.bundle import MANIFEST
from tinymusician.runtime.generator import GenerationRequest, MusicGenerator, open_player

_PIECE = 1 << 20
"""Bytes of a file that travel at once."""


class LoadedBundle:
    """A bundle that is played, and its room."""

    def __init__(self, bundle: ResolvedBundle, player: MusicGenerator, loop: EngineLoop) -> None:
        self.found, self.player, self.room = bundle, player, loop
        self.digest = bundle.digest


class AsyncOutputQueue:
    """What a room's thread plays for somebody who waits on an event loop."""

    def __init__(self) -> None:
        self._loop, self._outputs = asyncio.get_running_loop(), asyncio.Queue[AudioOutput]()

    def __call__(self, output: AudioOutput) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and so has whoever waited
            self._loop.call_soon_threadsafe(self._outputs.put_nowait, output)

    async def next(self) -> AudioOutput:
        """What comes next."""
        return await self._outputs.get()


class EngineReplica:
    """One engine."""

    def __init__(self, settings: ServeConfig) -> None:
        """Load the bundle and play it once: whoever sees this one ready can be played to at once.

        Raises:
            TinyMusicianError: there is no bundle that can be played.
        """
        self._settings, self._metrics = settings, EngineMetrics()
        self._source = open_bundle_source(settings)
        self._refused: set[str] = set()
        self._playing = self._first()
        self._closed = threading.Event()
        if settings.follows:
            threading.Thread(target=self._follow, name="follow", daemon=True).start()

    def close(self) -> None:
        """Follow the alias no more, and let no new piece begin; those that play are played to their end."""
        self._closed.set()
        self._playing.room.close()

    async def play(
        self, generation: GenerationRequest, whole: bool, request: str
    ) -> AsyncGenerator[StreamMetadata | bytes, None]:
        """A heading, then the samples (float32) as they come, or all at once. Closing the iterator frees the rows.

        Raises:
            RequestError: the wish cannot be played.
            EngineError: playing failed.
        """
        request_id.set(request)
        outputs = AsyncOutputQueue()
        playing, handle, frames = await self._submit(generation, outputs, whole)
        try:
            yield self._heading(playing, frames)
            while (output := await outputs.next()) is not None:
                if isinstance(output, EngineError):
                    raise output
                self._measure()
                yield output.tobytes()
        finally:
            handle.leave()

    async def _submit(
        self, generation: GenerationRequest, outputs: AsyncOutputQueue, whole: bool
    ) -> tuple[LoadedBundle, RequestHandle, int]:
        """A seat in the room of the day, and how many frames it is for."""
        while True:
            playing = self._playing
            if generation.seconds is None:
                generation = replace(generation, seconds=self._seconds(playing))
            request = await asyncio.to_thread(playing.player.request, generation)
            try:
                return playing, playing.room.join(request, outputs, whole), request.frames
            except EngineError:
                if playing is self._playing:  # else a new bundle came meanwhile
                    raise

    async def about(self) -> ModelInfo:
        """What plays here."""
        playing, limits = self._playing, self._settings.limits
        manifest, version = playing.player.manifest, playing.found.version
        defaults = manifest.sampling
        return ModelInfo(
            id=version.release.reference if version else manifest.name,
            digest=playing.digest,
            version=version.release.version if version else None,
            artifact=version.release.artifact if version else None,
            licence=manifest.licence,
            bytes=manifest.size,
            minimum_memory=manifest.minimum_memory,
            sampling_rate=manifest.architecture.sampling_rate,
            codebooks=manifest.architecture.codebooks,
            seconds=self._seconds(playing),
            most_seconds=limits.seconds,
            guidance=defaults.guidance,
            temperature=defaults.temperature,
            one_pass=defaults.one_pass,
            guidance_range=defaults.guidance_range,
        )

    async def file(self, digest: str, path: str) -> AsyncGenerator[int | bytes, None]:
        """A file of the bundle with this digest: its size, then its bytes. Devices check them by the manifest.

        Raises:
            NotFound: another bundle plays here by now, or it has no such file.
        """
        playing = self._playing
        paths = {MANIFEST, *(file.path for file in playing.player.manifest.files)}
        if digest != playing.digest or path not in paths:
            raise NotFoundError(f"bundle {digest[:12]}: {path!r} is not played here")
        with (playing.found.folder / path).open("rb") as file:
            yield os.fstat(file.fileno()).st_size
            while piece := await asyncio.to_thread(file.read, _PIECE):
                yield piece

    async def check_health(self) -> None:
        """Ray Serve asks now and then; an engine that raises is replaced."""
        self._measure()
        if not self._playing.room.alive:
            raise EngineError("the engine's thread has ended")

    def _seconds(self, playing: LoadedBundle) -> float:
        """The length of a piece for which none is asked."""
        return min(playing.player.manifest.sampling.seconds, self._settings.limits.seconds)

    def _heading(self, playing: LoadedBundle, frames: int) -> StreamMetadata:
        shape, version = playing.player.codec.shape, playing.found.version
        number = version.release.version if version else None
        return StreamMetadata(
            rate=shape.sampling_rate, samples=frames * shape.hop, digest=playing.digest, version=number
        )

    def _first(self) -> LoadedBundle:
        trouble: Exception | None = None
        for bundle in self._source.bundles():
            try:
                return self._opened(bundle)
            except Exception as error:  # whatever is wrong with a bundle, the one before may be good
                trouble = trouble or error
                self._refuse(bundle, error)
        assert trouble is not None  # a shelf without bundles raises
        raise trouble

    def _follow(self) -> None:
        while not self._closed.wait(self._settings.poll_interval_s):
            try:
                bundle = self._source.newer(self._refused)
            except Exception as error:  # whatever it is, the next look may go better
                self._metrics.store_errors.inc()
                log_event("store_error", error=str(error))
                continue
            if bundle is not None and bundle.mark != self._playing.found.mark:
                self._reload(bundle)

    def _reload(self, bundle: ResolvedBundle) -> None:
        """Play a bundle from now on, unless there is something wrong with it."""
        try:
            self._switch(self._opened(bundle))
        except Exception as error:
            if isinstance(error, MemoryError | OSError) or isinstance(error.__cause__, MemoryError):
                log_event("bundle_waits", folder=str(bundle.folder), error=str(error))  # that may pass: tried again
            else:
                self._refuse(bundle, error)

    def _opened(self, bundle: ResolvedBundle) -> LoadedBundle:
        """A bundle that was loaded, and has played."""
        began = time.monotonic()
        player = open_player(bundle.folder, self._settings.threads)
        player.engine.most_rows = self._settings.max_batch_rows
        defaults = player.manifest.sampling
        for guidance in defaults.guidance_range or ((1.0,) if defaults.one_pass else (1.0, 3.0)):
            samples = player.play(GenerationRequest("warming up", seconds=player.shortest, guidance=guidance))
            if not np.isfinite(samples).all():
                raise BundleError(f"bundle {bundle.folder}: its codec gives numbers that are not finite")
        self._metrics.version.set(bundle.version.release.version if bundle.version else 0)
        log_event("bundle_opened", folder=str(bundle.folder), seconds=round(time.monotonic() - began, 2))
        return LoadedBundle(bundle, player, EngineLoop(player, self._on_finished))

    def _switch(self, fresh: LoadedBundle) -> None:
        before, self._playing = self._playing, fresh
        before.room.close()
        if self._closed.is_set():
            fresh.room.close()
        self._metrics.switches.inc(tags={"outcome": "taken"})
        log_event("bundle_switched", digest=fresh.digest, before=before.digest)

    def _refuse(self, bundle: ResolvedBundle, error: Exception) -> None:
        self._refused.add(bundle.mark)
        self._source.refuse(bundle)
        self._metrics.switches.inc(tags={"outcome": "refused"})
        log_event("bundle_refused", folder=str(bundle.folder), error=str(error))

    def _on_finished(self, handle: RequestHandle) -> None:
        self._measure()
        took = time.monotonic() - handle.began
        self._metrics.factor.observe(took / handle.seconds)
        self._metrics.audio.inc(handle.seconds)

    def _measure(self) -> None:
        engine = self._playing.player.engine
        self._metrics.rows.set(engine.rows)
        self._metrics.waiting.set(engine.waiting)
