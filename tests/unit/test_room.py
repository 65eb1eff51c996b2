"""The room: pieces side by side, each as the player plays it alone."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serve.engine_loop import AudioOutput, EngineLoop, RequestHandle
from tests.bundles import write_bundle
from tinymusician.errors import EngineError
from tinymusician.runtime.generator import GenerationRequest, MusicGenerator, open_player


@pytest.fixture(scope="module")
def player(tiny_musicgen: Path, tmp_path_factory: pytest.TempPathFactory) -> MusicGenerator:
    from transformers import MusicgenForConditionalGeneration

    folder = tmp_path_factory.mktemp("bundle")
    model = MusicgenForConditionalGeneration.from_pretrained(tiny_musicgen)
    write_bundle(model, tiny_musicgen / "tokenizer.json", folder, seconds=1.0, temperature=0.0)
    return open_player(folder, 1)


@pytest.fixture
def engine_loop(player: MusicGenerator) -> EngineLoop:
    return EngineLoop(player)


class Listener:
    def __init__(self) -> None:
        self.outputs: queue.Queue[AudioOutput] = queue.Queue()

    def __call__(self, one: AudioOutput) -> None:
        self.outputs.put(one)

    def all(self) -> tuple[list[np.ndarray], EngineError | None]:
        parts = []
        while isinstance(one := self.outputs.get(timeout=60), np.ndarray):
            parts.append(one)
        return parts, one


def join(engine_loop: EngineLoop, request: GenerationRequest) -> tuple[RequestHandle, Listener]:
    listener = Listener()
    return engine_loop.join(engine_loop.player.request(request), listener), listener


def test_pieces_side_by_side_sound_as_they_do_alone(player: MusicGenerator, engine_loop: EngineLoop) -> None:
    requests = [
        GenerationRequest(prompt, seconds=seconds) for prompt, seconds in (("a slow reel", 1.0), ("a march", 2.5))
    ]
    alone = [player.play(request) for request in requests]
    for listener, expected in zip([join(engine_loop, request)[1] for request in requests], alone, strict=True):
        parts, error = listener.all()
        assert error is None
        assert len(parts) >= 2
        assert np.allclose(np.concatenate(parts), expected, atol=1e-4)


def test_whoever_leaves_frees_the_rows_and_the_others_play_on(player: MusicGenerator, engine_loop: EngineLoop) -> None:
    handle, left = join(engine_loop, GenerationRequest("a long march", seconds=60.0))
    left.outputs.get(timeout=60)
    _, stays = join(engine_loop, GenerationRequest("a reel", seconds=1.0))
    handle.leave()
    handle.leave()
    parts, error = stays.all()
    assert error is None
    assert sum(map(len, parts)) == 800
    assert wait(lambda: engine_loop.seats == 0)
    assert player.engine.rows == 0


def test_a_codec_that_fails_ends_its_piece_only(
    player: MusicGenerator, engine_loop: EngineLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, listener = join(engine_loop, GenerationRequest("a reel", seconds=30.0))
    assert isinstance(listener.outputs.get(timeout=60), np.ndarray)
    monkeypatch.setattr(first, "_audio", None)
    _, error = listener.all()
    assert isinstance(error, EngineError)
    assert join(engine_loop, GenerationRequest("a reel", seconds=1.0))[1].all()[1] is None


def test_a_closed_room_plays_to_the_end_and_lets_nobody_in(engine_loop: EngineLoop) -> None:
    _, listener = join(engine_loop, GenerationRequest("a reel", seconds=2.0))
    engine_loop.close()
    with pytest.raises(EngineError, match="closed"):
        join(engine_loop, GenerationRequest("a march"))
    parts, error = listener.all()
    assert error is None
    assert sum(map(len, parts)) == 1600
    assert wait(lambda: not engine_loop.alive)


def wait(condition: Callable[[], bool]) -> bool:
    from tests.ray_cluster import wait_for

    wait_for(condition, 30)
    return True
