"""An engine behind the endpoint: runs requests on a bundle, and loads a new bundle when the alias moves.

A new bundle is loaded and run once beside the old one. After that, new requests run on it; those that run on the old
bundle are completed there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import replace

import numpy as np

from serve import log
from serve.bundle_files import ServedFiles, bundle_file, bundle_info
from serve.bundle_follower import BundleFollower, Outcome
from serve.bundle_source import ResolvedBundle
from serve.byte_range import ByteRange
from serve.config import ServeConfig
from serve.engine_loop import AudioOutput, EngineLoop, RequestHandle
from serve.gauge_refresh import GaugeRefresh
from serve.log import log_event
from serve.metrics import EngineMetrics
from serve.schemas import ModelInfo, StreamMetadata
from tinymusician.errors import BundleError, EngineError
from tinymusician.runtime.generator import GenerationRequest, MusicGenerator, load_generator


class LoadedBundle:
    """A bundle that is loaded, and the loop that runs requests on it."""

    def __init__(self, source: ResolvedBundle, generator: MusicGenerator, loop: EngineLoop) -> None:
        self.source, self.generator, self.loop = source, generator, loop
        self.digest = source.digest
        self.files = ServedFiles(source.folder, self.digest, generator.manifest.files)

    def close(self) -> None:
        """Accept no more requests; those that run are completed."""
        self.loop.close()


class AsyncOutputQueue:
    """Passes output from an engine loop's threads to an asyncio event loop."""

    def __init__(self) -> None:
        self._event_loop, self._outputs = asyncio.get_running_loop(), asyncio.Queue[AudioOutput]()

    def __call__(self, output: AudioOutput) -> None:
        """Put output; may be called from any thread."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended, so nothing reads this
            self._event_loop.call_soon_threadsafe(self._outputs.put_nowait, output)

    async def next(self) -> AudioOutput:
        """Wait for the next output."""
        return await self._outputs.get()


class EngineReplica:
    """One engine replica of the endpoint."""

    def __init__(self, config: ServeConfig) -> None:
        """Load the bundle and run it once, so that a replica that is ready is warm.

        Raises:
            TinyMusicianError: no bundle can be loaded and run.
        """
        self._config, self._metrics = config, EngineMetrics()
        self._follower = BundleFollower(config, self._load, self._count)
        self._gauges = GaugeRefresh(self._update_gauges)

    def close(self) -> None:
        """Stop polling the alias and accept no more requests; those that run are completed."""
        self._gauges.close()
        self._follower.close()

    @property
    def _bundle(self) -> LoadedBundle:
        return self._follower.current

    async def generate(
        self, request: GenerationRequest, buffered: bool, request_id: str
    ) -> AsyncGenerator[StreamMetadata | bytes, None]:
        """Yield the stream's metadata, then float32 samples: in chunks, or with `buffered` all at once.

        Closing the generator cancels the request. `request_id` is for the log.

        Raises:
            RequestError: the request is invalid.
            EngineError: the engine failed.
        """
        log.request_id.set(request_id)
        outputs = AsyncOutputQueue()
        bundle, handle, frames = await self._submit(request, outputs, buffered)
        try:
            yield self._stream_metadata(bundle, request, frames)
            while (output := await outputs.next()) is not None:
                if isinstance(output, EngineError):
                    raise output
                self._update_gauges()
                yield output.tobytes()
        finally:
            handle.cancel()

    async def _submit(
        self, request: GenerationRequest, outputs: AsyncOutputQueue, buffered: bool
    ) -> tuple[LoadedBundle, RequestHandle, int]:
        """Submit a request to the current bundle; returns the bundle, the handle and the request's frames."""
        while True:
            bundle = self._bundle
            if request.seconds is None:
                request = replace(request, seconds=self._default_seconds(bundle))
            prepared = await asyncio.to_thread(bundle.generator.request, request)
            try:
                return bundle, bundle.loop.submit(prepared, outputs, buffered), prepared.frames
            except EngineError:
                if bundle is self._bundle:  # otherwise a new bundle was loaded meanwhile: retry on it
                    raise

    async def about(self) -> ModelInfo:
        """Describe the loaded bundle."""
        bundle, limits = self._bundle, self._config.limits
        manifest = bundle.generator.manifest
        defaults = manifest.sampling
        return ModelInfo(
            **bundle_info(bundle.source, bundle.digest, manifest).model_dump(),
            codebooks=manifest.architecture.codebooks,
            seconds=self._default_seconds(bundle),
            max_seconds=limits.seconds,
            guidance=defaults.guidance,
            temperature=defaults.temperature,
            one_pass=defaults.one_pass,
            guidance_range=defaults.guidance_range,
        )

    async def file(self, digest: str, path: str, part: ByteRange) -> AsyncGenerator[int | bytes, None]:
        """Yield the size of a file of the bundle with this digest, then the bytes of a part of it.

        Raises:
            NotFoundError: the bundle is not served (any more), or it has no such file.
        """
        async with contextlib.aclosing(
            bundle_file(self._follower.recent, digest, path, part)
        ) as parts:  # Serve streams generator functions alone
            async for chunk in parts:
                yield chunk

    async def check_health(self) -> None:
        """Called by Ray Serve periodically; a replica that raises is replaced."""
        self._update_gauges()
        if not self._bundle.loop.is_alive:
            raise EngineError("the engine's thread has ended")
        self._follower.check_health()
        self._gauges.check_health()

    def _default_seconds(self, bundle: LoadedBundle) -> float:
        """The length of a request that gives none."""
        return min(bundle.generator.manifest.sampling.seconds, self._config.limits.seconds)

    def _stream_metadata(self, bundle: LoadedBundle, request: GenerationRequest, frames: int) -> StreamMetadata:
        spec, version = bundle.generator.codec.shape, bundle.source.version
        return StreamMetadata(
            rate=spec.sampling_rate,
            samples=frames * spec.hop,
            digest=bundle.digest,
            version=version.release.version if version else None,
            unknown_words=tuple(bundle.generator.unknown_words(request)),
        )

    def _load(self, source: ResolvedBundle) -> LoadedBundle:
        """Load a bundle and run it once."""
        began = time.monotonic()
        generator = load_generator(source.folder, self._config.threads)
        generator.engine.max_rows = self._config.max_batch_rows
        defaults = generator.manifest.sampling
        for guidance in defaults.guidance_range or ((1.0,) if defaults.one_pass else (1.0, 3.0)):
            samples = generator.generate(GenerationRequest("warming up", seconds=generator.shortest, guidance=guidance))
            if not np.isfinite(samples).all():
                raise BundleError(f"bundle {source.folder}: its codec produces non-finite samples")
        log_event("bundle_loaded", folder=str(source.folder), seconds=round(time.monotonic() - began, 2))
        return LoadedBundle(source, generator, EngineLoop(generator, self._on_complete))

    def _count(self, outcome: Outcome) -> None:
        if outcome == "store_error":
            self._metrics.store_errors.inc()
        else:
            self._metrics.switches.inc(tags={"outcome": outcome})

    def _on_complete(self, handle: RequestHandle) -> None:
        self._update_gauges()
        elapsed = time.monotonic() - handle.began
        self._metrics.real_time_factor.observe(elapsed / handle.seconds)
        self._metrics.audio.inc(handle.seconds)

    def _update_gauges(self) -> None:
        engine, version = self._bundle.generator.engine, self._bundle.source.version
        self._metrics.version.set(version.release.version if version else 0)
        self._follower.update_expiry(self._metrics.expiry)
        self._metrics.rows.set(engine.rows)
        self._metrics.waiting.set(engine.waiting)
