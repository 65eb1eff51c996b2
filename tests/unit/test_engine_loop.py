"""The engine loop: concurrent requests give the same audio as single ones; cancelling, failing, closing."""

from __future__ import annotations

import queue
from pathlib import Path

import numpy as np
import pytest

from serve.engine_loop import AudioOutput, EngineLoop, RequestHandle
from tests.bundles import write_bundle
from tests.ray_cluster import wait_for
from tinymusician.errors import EngineError
from tinymusician.runtime.generator import GenerationRequest, MusicGenerator, load_generator


@pytest.fixture(scope="module")
def generator(tiny_musicgen: Path, tmp_path_factory: pytest.TempPathFactory) -> MusicGenerator:
    from transformers import MusicgenForConditionalGeneration

    folder = tmp_path_factory.mktemp("bundle")
    model = MusicgenForConditionalGeneration.from_pretrained(tiny_musicgen)
    write_bundle(model, tiny_musicgen / "tokenizer.json", folder, seconds=1.0, temperature=0.0)
    return load_generator(folder, 1)


@pytest.fixture
def loop(generator: MusicGenerator) -> EngineLoop:
    return EngineLoop(generator)


class OutputQueue:
    def __init__(self) -> None:
        self.queue: queue.Queue[AudioOutput] = queue.Queue()

    def __call__(self, output: AudioOutput) -> None:
        self.queue.put(output)

    def all(self) -> tuple[list[np.ndarray], EngineError | None]:
        """The samples, and the error that ended them, if any."""
        chunks = []
        while isinstance(output := self.queue.get(timeout=60), np.ndarray):
            chunks.append(output)
        return chunks, output


def submit(loop: EngineLoop, request: GenerationRequest) -> tuple[RequestHandle, OutputQueue]:
    outputs = OutputQueue()
    return loop.submit(loop.generator.request(request), outputs), outputs


def test_concurrent_requests_equal_single_ones(generator: MusicGenerator, loop: EngineLoop) -> None:
    requests = [
        GenerationRequest(prompt, seconds=seconds) for prompt, seconds in (("a slow reel", 1.0), ("a march", 2.5))
    ]
    single = [generator.generate(request) for request in requests]
    for outputs, expected in zip([submit(loop, request)[1] for request in requests], single, strict=True):
        chunks, error = outputs.all()
        assert error is None
        assert len(chunks) >= 2
        assert np.allclose(np.concatenate(chunks), expected, atol=1e-4)


def test_cancelled_request_frees_its_rows(generator: MusicGenerator, loop: EngineLoop) -> None:
    handle, cancelled = submit(loop, GenerationRequest("a long march", seconds=60.0))
    cancelled.queue.get(timeout=60)
    _, other = submit(loop, GenerationRequest("a reel", seconds=1.0))
    handle.cancel()
    handle.cancel()
    chunks, error = other.all()
    assert error is None
    assert sum(map(len, chunks)) == 800
    wait_for(lambda: loop.num_requests == 0, 30)
    assert generator.engine.rows == 0


def test_codec_error_fails_its_request_only(
    generator: MusicGenerator, loop: EngineLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, outputs = submit(loop, GenerationRequest("a reel", seconds=30.0))
    assert isinstance(outputs.queue.get(timeout=60), np.ndarray)
    monkeypatch.setattr(handle, "_audio", None)
    _, error = outputs.all()
    assert isinstance(error, EngineError)
    assert submit(loop, GenerationRequest("a reel", seconds=1.0))[1].all()[1] is None


def test_closed_loop_completes_its_requests_and_accepts_no_others(loop: EngineLoop) -> None:
    _, outputs = submit(loop, GenerationRequest("a reel", seconds=2.0))
    loop.close()
    with pytest.raises(EngineError, match="closed"):
        submit(loop, GenerationRequest("a march"))
    chunks, error = outputs.all()
    assert error is None
    assert sum(map(len, chunks)) == 1600
    wait_for(lambda: not loop.is_alive, 30)


def test_thread_that_ends_fails_its_requests_and_is_reported(
    generator: MusicGenerator, loop: EngineLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A panic in a library is no `Exception`; nobody may wait for audio that never comes."""

    class Panic(BaseException):
        pass

    def step() -> None:
        raise Panic("out of bounds")

    monkeypatch.setattr(generator.engine, "step", step)
    _, outputs = submit(loop, GenerationRequest("a march", seconds=1.0))
    chunks, error = outputs.all()
    assert (chunks, str(error)) == ([], "the engine's thread has ended (out of bounds)")
    wait_for(lambda: not loop.is_alive, 10)
    with pytest.raises(EngineError, match="the engine is closed"):
        submit(loop, GenerationRequest("a march", seconds=1.0))
