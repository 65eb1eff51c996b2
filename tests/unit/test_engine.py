"""The engine on exported bundles, against transformers' own `generate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.bundles import write_bundle
from tests.generated import generated
from tests.tiny import CAPTIONS
from tinymusician.errors import EngineError, RequestError
from tinymusician.models.musicgen import load_musicgen, model_location
from tinymusician.runtime.generator import GenerationRequest, MusicGenerator, load_generator

PROMPT = "a slow fiddle reel"


@pytest.fixture(scope="module", params=["band-large", "tiny"])
def name(request: pytest.FixtureRequest, tiny_musicgen: Path) -> str:
    return str(tiny_musicgen) if request.param == "tiny" else request.param


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return load_musicgen(name)


@pytest.fixture(scope="module")
def player(name: str, model: Any, tmp_path_factory: pytest.TempPathFactory) -> MusicGenerator:
    folder = tmp_path_factory.mktemp("bundle")
    tokenizer = Path(model_location(name)) / "tokenizer.json"
    write_bundle(model, tokenizer, folder, continuation=True, seconds=1.0)
    return load_generator(folder, threads=1)


def expected_codes(model: Any, name: str, frames: int, guidance: float, **settings: Any) -> Any:
    text = AutoTokenizer.from_pretrained(model_location(name))([PROMPT], return_tensors="pt")
    return generated(model, frames, **text, guidance_scale=guidance, **settings)[0]


def codes_of(player: MusicGenerator, request: GenerationRequest) -> Any:
    generation = player.engine.start(player.request(request))
    player.engine.run(generation)
    return generation.codes


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_greedy_codes_are_those_of_transformers(player: MusicGenerator, model: Any, name: str, guidance: float) -> None:
    expected = expected_codes(model, name, 60, guidance, do_sample=False)
    actual = codes_of(player, GenerationRequest(PROMPT, seconds=1.2, temperature=0, guidance=guidance))
    assert np.array_equal(actual, expected)


def test_the_same_numbers_give_the_same_codes(
    player: MusicGenerator, model: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' draws replaced by the inverse of its own probabilities at the engine's uniform numbers."""
    random = np.random.Generator(np.random.Philox(7))

    def multinomial(chances: torch.Tensor, num_samples: int) -> torch.Tensor:
        numbers = torch.from_numpy(random.random(len(chances)))[:, None]
        cumulative = chances.double().cumsum(-1)
        return (cumulative <= numbers * cumulative[:, -1:]).sum(-1, keepdim=True).clamp(max=chances.shape[-1] - 1)

    monkeypatch.setattr(torch, "multinomial", multinomial)
    expected = expected_codes(model, name, 40, 3.0, do_sample=True, top_k=9, top_p=0.9, temperature=1.3)
    request = GenerationRequest(PROMPT, seconds=0.8, seed=7, top_k=9, top_p=0.9, temperature=1.3)
    assert np.array_equal(codes_of(player, request), expected)


def test_audio_is_that_of_transformers(player: MusicGenerator, model: Any, name: str) -> None:
    text = AutoTokenizer.from_pretrained(model_location(name))([PROMPT], return_tensors="pt")
    with torch.no_grad():
        expected = model.generate(**text, max_new_tokens=53, do_sample=False, guidance_scale=3.0)[0, 0].numpy()
    actual = player.generate(GenerationRequest(PROMPT, seconds=1.0, temperature=0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_neighbours_change_nothing(player: MusicGenerator) -> None:
    """Requests that join and leave at different steps play what they play alone."""
    requests = [
        GenerationRequest(prompt, seconds=0.6 + 0.2 * i, seed=i, guidance=(3.0, 1.0)[i % 2])
        for i, prompt in enumerate(CAPTIONS)
    ]
    alone = [codes_of(player, request) for request in requests]
    generations = []
    for request in requests:
        generations.append(player.engine.start(player.request(request)))
        for _ in range(5):
            player.engine.step()
    for generation in generations:
        player.engine.run(generation)
    assert all(np.array_equal(g.codes, codes) for g, codes in zip(generations, alone, strict=True))
    assert player.engine.is_idle
    assert player.decoder.rows == 0


def test_a_full_batch_waits(player: MusicGenerator) -> None:
    """More requests than rows: the rest wait, none is lost."""
    generations = [
        player.engine.start(player.request(GenerationRequest(PROMPT, seconds=0.3, seed=i))) for i in range(11)
    ]
    player.engine.step()
    assert player.decoder.rows == 16
    while not all(generation.is_finished for generation in generations):
        player.engine.step()
    assert all(generation.frames_ready == 15 for generation in generations)


def test_cancelling_frees_the_rows_at_once(player: MusicGenerator) -> None:
    first, second = (player.engine.start(player.request(GenerationRequest(PROMPT, seconds=1, seed=i))) for i in (0, 1))
    for _ in range(8):
        player.engine.step()
    assert player.decoder.rows == 4
    first.cancel()
    player.engine.step()
    assert player.decoder.rows == 2
    player.engine.run(second)
    assert np.array_equal(second.codes, codes_of(player, GenerationRequest(PROMPT, seconds=1, seed=1)))
    stream = player.stream(GenerationRequest(PROMPT, seconds=3))
    next(stream)
    stream.close()
    assert player.engine.is_idle


def test_a_stream_comes_in_time_and_whole(player: MusicGenerator) -> None:
    request = GenerationRequest(PROMPT, seconds=3, seed=3)
    progress: list[tuple[int, int]] = []
    stream = player.stream(request, lambda done, frames: progress.append((done, frames)))
    chunks = [(len(chunk), progress[-1][0]) for chunk in stream]
    rate, hop = player.codec.shape.frame_rate, player.codec.shape.hop
    assert chunks[0][1] <= 0.5 * rate + 4, "the first half second comes when it is there"
    assert len(chunks) == 4
    assert sum(length for length, _ in chunks) == 3 * rate * hop
    assert progress == [(max(0, step - 2), 150) for step in range(153)]
    whole = player.codec(codes_of(player, request))
    np.testing.assert_allclose(player.generate(request), whole, rtol=0, atol=1e-4 * np.abs(whole).max())


def test_seeds(player: MusicGenerator) -> None:
    one, again, other = (codes_of(player, GenerationRequest(PROMPT, seconds=0.5, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_negative_prompt_takes_the_place_of_no_text(player: MusicGenerator) -> None:
    """Guided away from its own prompt at scale 2, the logits are z_u + 2(z_u - z_u): those of one pass."""
    plain = codes_of(player, GenerationRequest(PROMPT, seconds=0.5, temperature=0, guidance=1.0))
    same = codes_of(player, GenerationRequest(PROMPT, seconds=0.5, temperature=0, guidance=2.0, negative_prompt=PROMPT))
    assert np.array_equal(plain, same)


def test_going_on_from_codes(player: MusicGenerator) -> None:
    """A greedy piece continued from its own beginning is the same piece."""
    request = player.request(GenerationRequest(PROMPT, seconds=1, temperature=0))
    whole = codes_of(player, GenerationRequest(PROMPT, seconds=1, temperature=0))
    generation = player.engine.start(type(request)(**{**vars(request), "prefix": whole[:, :20]}))
    player.engine.run(generation)
    assert np.array_equal(generation.codes, whole)
    with pytest.raises(RequestError, match="frames 50: allowed are 51 to"):
        player.engine.start(type(request)(**{**vars(request), "prefix": np.zeros((4, 50), np.int64)}))


def test_what_is_longer_than_the_training_clips_comes_in_windows(player: MusicGenerator) -> None:
    """Each window is the engine's own continuation of the end of the one before."""
    shape = player.manifest.architecture
    generation = GenerationRequest(PROMPT, seconds=(shape.window + 60) / 50, seed=5)
    track = player.start(generation)
    while not track.is_finished:
        player.engine.step()
        track.advance()
    overlap = int(0.4 * shape.window)
    request = player.request(generation)
    first = player.engine.start(replace(request, frames=shape.window))
    player.engine.run(first)
    again = replace(request, frames=overlap + 60, prefix=first.codes[:, -overlap:], window=1)
    second = player.engine.start(again)
    player.engine.run(second)
    assert np.array_equal(track.codes, np.concatenate([first.codes, second.codes[:, overlap:]], axis=1))
    assert len(player.generate(generation)) == (shape.window + 60) * player.codec.shape.hop
    with pytest.raises(RequestError, match=rf"allowed are .* to {shape.window / 50:g}; more with windows"):
        player.generate(replace(generation, windows=False))


def test_going_on_from_a_clip(player: MusicGenerator, model: Any) -> None:
    """The clip's codes are those of transformers' codec, and the music begins with them."""
    clip = np.sin(np.arange(player.codec.shape.hop * 30 + 3) / 7).astype(np.float32) / 3
    track = player.start(GenerationRequest(PROMPT, seconds=1, clip=clip))
    while not track.is_finished:
        player.engine.step()
    with torch.no_grad():
        whole = torch.from_numpy(clip[: player.codec.shape.hop * 30])[None, None]
        expected = model.audio_encoder.encode(whole).audio_codes[0, 0].numpy()
    assert track.codes.shape == (4, 50)
    assert np.array_equal(track.codes[:, :30], expected)
    with pytest.raises(RequestError, match=r"clip: lasts .* less than the requested 0\.5"):
        player.generate(GenerationRequest(PROMPT, seconds=0.5, clip=clip))


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        (GenerationRequest(""), "prompt: is empty"),
        (GenerationRequest("  \n"), "prompt: is empty"),
        (GenerationRequest("x" * 10_000), "prompt: 10000 characters; at most 5000"),
        (GenerationRequest("a slow fiddle reel " * 250), "tokens; at most 512"),
        (GenerationRequest("x", seconds=1, seed=-1), "seed -1"),
        (GenerationRequest("x", seconds=1, guidance=float("inf")), "guidance inf"),
        (GenerationRequest("x", seconds=1, temperature=1e-309), "temperature 1e-309"),
        (GenerationRequest("x", seconds=1, negative_prompt=" "), "negative_prompt: is empty"),
        (GenerationRequest("x", seconds=1, guidance=1, negative_prompt="y"), "guidance 1 has none"),
        (GenerationRequest("x", seconds=1, clip=np.zeros(10, np.float32)), "clip: lasts"),
        (GenerationRequest("x", seconds=0), "seconds 0: allowed are"),
        (GenerationRequest("x", seconds=-1), "seconds -1: allowed are"),
        (GenerationRequest("x", seconds=1e9), "seconds 1e+09: allowed are"),
        (GenerationRequest("x", seconds=1, guidance=-1), "guidance -1"),
        (GenerationRequest("x", seconds=1, guidance=float("nan")), "guidance nan"),
        (GenerationRequest("x", seconds=1, temperature=-0.1), "temperature -0.1"),
        (GenerationRequest("x", seconds=1, top_k=-5), "top_k -5"),
        (GenerationRequest("x", seconds=1, top_p=0), "top_p 0: more than 0"),
    ],
)
def test_invalid_requests(player: MusicGenerator, generation: GenerationRequest, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        player.generate(generation)
    assert message in str(caught.value)
    assert player.engine.is_idle


def test_who_joins_after_another_left_hears_nothing_of_it(player: MusicGenerator) -> None:
    """The newcomer takes the place of one with a long negative prompt, while a third plays on."""
    request = GenerationRequest(PROMPT, seconds=0.4, seed=3, temperature=0)
    alone = codes_of(player, request)
    player.engine.start(player.request(GenerationRequest("a fast flute jig", seconds=1.0)))
    before = player.engine.start(player.request(replace(request, negative_prompt="a sad waltz for piano " * 5)))
    for _ in range(5):
        player.engine.step()
    before.cancel()
    after = player.engine.start(player.request(request))
    player.engine.run(after)
    assert np.array_equal(after.codes, alone)
    while not player.engine.is_idle:
        player.engine.step()


def test_a_failure_of_the_decoder_ends_those_who_play_and_nobody_else(
    player: MusicGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(codes: Any) -> Any:
        raise MemoryError

    failing = player.engine.start(player.request(GenerationRequest(PROMPT, seconds=0.5)))
    with monkeypatch.context() as patch:
        patch.setattr(player.decoder, "step", out_of_memory)
        player.engine.step()
        with pytest.raises(EngineError, match="the decoder: not enough memory"):
            player.generate(GenerationRequest(PROMPT, seconds=0.5))
    assert isinstance(failing.error, EngineError)
    assert player.decoder.rows == 0
    assert len(player.generate(GenerationRequest(PROMPT, seconds=0.5))) > 0


def test_invalid_request_in_a_batch_leaves_no_state(player: MusicGenerator) -> None:
    with pytest.raises(RequestError, match="prompt: is empty"):
        player.generate_batch([GenerationRequest(PROMPT, seconds=1), GenerationRequest("")])
    assert player.engine.is_idle


def test_threads_may_play_at_once(player: MusicGenerator) -> None:
    """Each hears what it would hear alone."""
    from concurrent.futures import ThreadPoolExecutor

    requests = [
        GenerationRequest(PROMPT, seconds=0.6, seed=seed, temperature=0, guidance=1 + seed) for seed in range(4)
    ]
    alone = [player.generate(request) for request in requests]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(player.generate, requests))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3 * np.abs(one).max())


def test_numbers_that_are_none(player: MusicGenerator, model: Any, name: str, tmp_path: Path) -> None:
    """A decoder that gives NaN ends the request with an error, and no other one."""
    broken = load_musicgen(name)
    with torch.no_grad():
        broken.decoder.lm_heads[0].weight.fill_(float("nan"))
    write_bundle(broken, Path(model_location(name)) / "tokenizer.json", tmp_path)
    other = load_generator(tmp_path, threads=1)
    with pytest.raises(EngineError, match="no finite numbers at step 0"):
        other.generate(GenerationRequest(PROMPT, seconds=1))
    assert other.engine.is_idle
