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
from tinymusician.evaluate.generators import OnnxGenerator, SamplingSettings, TorchGenerator
from tinymusician.models.musicgen import load_musicgen, load_tokenizer, model_location
from tinymusician.runtime.engine import RequestStatus
from tinymusician.runtime.generator import GenerationRequest, MusicGenerator, PromptSection, load_generator

PROMPT = "a slow fiddle reel"


@pytest.fixture(scope="module", params=["band-large", "tiny"])
def name(request: pytest.FixtureRequest, tiny_musicgen: Path) -> str:
    return str(tiny_musicgen) if request.param == "tiny" else request.param


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return load_musicgen(name)


@pytest.fixture(scope="module")
def generator(name: str, model: Any, tmp_path_factory: pytest.TempPathFactory) -> MusicGenerator:
    folder = tmp_path_factory.mktemp("bundle")
    tokenizer = model_location(name) / "tokenizer.json"
    write_bundle(model, tokenizer, folder, continuation=True, seconds=1.0)
    return load_generator(folder, threads=1)


def expected_codes(model: Any, name: str, frames: int, guidance: float, **settings: Any) -> Any:
    text = AutoTokenizer.from_pretrained(model_location(name))([PROMPT], return_tensors="pt")
    return generated(model, frames, **text, guidance_scale=guidance, **settings)[0]


def codes_of(generator: MusicGenerator, request: GenerationRequest) -> Any:
    generation = generator.engine.start(generator.request(request))
    generator.engine.run(generation)
    return generation.codes


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_greedy_codes_equal_transformers(generator: MusicGenerator, model: Any, name: str, guidance: float) -> None:
    expected = expected_codes(model, name, 60, guidance, do_sample=False)
    actual = codes_of(generator, GenerationRequest(PROMPT, seconds=1.2, temperature=0, guidance=guidance))
    assert np.array_equal(actual, expected)


def test_equal_random_numbers_give_equal_codes(
    generator: MusicGenerator, model: Any, name: str, monkeypatch: pytest.MonkeyPatch
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
    assert np.array_equal(codes_of(generator, request), expected)


def test_audio_equals_transformers(generator: MusicGenerator, model: Any, name: str) -> None:
    text = AutoTokenizer.from_pretrained(model_location(name))([PROMPT], return_tensors="pt")
    with torch.no_grad():
        expected = model.generate(**text, max_new_tokens=53, do_sample=False, guidance_scale=3.0)[0, 0].numpy()
    actual = generator.generate(GenerationRequest(PROMPT, seconds=1.0, temperature=0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_batch_neighbours_do_not_change_a_request(generator: MusicGenerator) -> None:
    """Requests that join and leave at different steps play what they play alone."""
    requests = [
        GenerationRequest(prompt, seconds=0.6 + 0.2 * i, seed=i, guidance=(3.0, 1.0)[i % 2])
        for i, prompt in enumerate(CAPTIONS)
    ]
    alone = [codes_of(generator, request) for request in requests]
    generations = []
    for request in requests:
        generations.append(generator.engine.start(generator.request(request)))
        for _ in range(5):
            generator.engine.step()
    for generation in generations:
        generator.engine.run(generation)
    assert all(np.array_equal(g.codes, codes) for g, codes in zip(generations, alone, strict=True))
    assert generator.engine.is_idle
    assert generator.decoder.rows == 0


def test_full_batch_queues_requests(generator: MusicGenerator) -> None:
    """More requests than rows: the rest wait, none is lost."""
    generations = [
        generator.engine.start(generator.request(GenerationRequest(PROMPT, seconds=0.3, seed=i))) for i in range(11)
    ]
    generator.engine.step()
    assert generator.decoder.rows == 16
    while not all(generation.is_finished for generation in generations):
        generator.engine.step()
    assert all(generation.frames_ready == 15 for generation in generations)


def test_cancelling_frees_the_rows_at_once(generator: MusicGenerator) -> None:
    first, second = (
        generator.engine.start(generator.request(GenerationRequest(PROMPT, seconds=1, seed=i))) for i in (0, 1)
    )
    for _ in range(8):
        generator.engine.step()
    assert generator.decoder.rows == 4
    first.cancel()
    generator.engine.step()
    assert generator.decoder.rows == 2
    generator.engine.run(second)
    assert np.array_equal(second.codes, codes_of(generator, GenerationRequest(PROMPT, seconds=1, seed=1)))
    stream = generator.stream(GenerationRequest(PROMPT, seconds=3))
    next(stream)
    stream.close()
    assert generator.engine.is_idle


def test_stream_is_prompt_and_complete(generator: MusicGenerator) -> None:
    request = GenerationRequest(PROMPT, seconds=3, seed=3)
    progress: list[tuple[int, int]] = []
    stream = generator.stream(request, lambda done, frames: progress.append((done, frames)))
    chunks = [(len(chunk), progress[-1][0]) for chunk in stream]
    rate, hop = generator.codec.shape.frame_rate, generator.codec.shape.hop
    assert chunks[0][1] <= 0.5 * rate + 4, "the first half second comes when it is there"
    assert len(chunks) == 4
    assert sum(length for length, _ in chunks) == 3 * rate * hop
    assert progress == [(max(0, step - 2), 150) for step in range(153)]
    whole = generator.codec(codes_of(generator, request))
    np.testing.assert_allclose(generator.generate(request), whole, rtol=0, atol=1e-4 * np.abs(whole).max())


def test_seeds(generator: MusicGenerator) -> None:
    one, again, other = (codes_of(generator, GenerationRequest(PROMPT, seconds=0.5, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_negative_prompt_replaces_the_empty_prompt(generator: MusicGenerator) -> None:
    """Guided away from its own prompt at scale 2, the logits are z_u + 2(z_u - z_u): those of one pass."""
    plain = codes_of(generator, GenerationRequest(PROMPT, seconds=0.5, temperature=0, guidance=1.0))
    same = codes_of(
        generator, GenerationRequest(PROMPT, seconds=0.5, temperature=0, guidance=2.0, negative_prompt=PROMPT)
    )
    assert np.array_equal(plain, same)


def test_continuation_of_codes(generator: MusicGenerator) -> None:
    """A greedy piece continued from its own beginning is the same piece."""
    request = generator.request(GenerationRequest(PROMPT, seconds=1, temperature=0))
    whole = codes_of(generator, GenerationRequest(PROMPT, seconds=1, temperature=0))
    generation = generator.engine.start(type(request)(**{**vars(request), "prefix": whole[:, :20]}))
    generator.engine.run(generation)
    assert np.array_equal(generation.codes, whole)
    with pytest.raises(RequestError, match="frames 50: allowed are 51 to"):
        generator.engine.start(type(request)(**{**vars(request), "prefix": np.zeros((4, 50), np.int64)}))


def test_long_audio_is_generated_in_windows(generator: MusicGenerator) -> None:
    """Each window is the engine's own continuation of the end of the one before."""
    shape = generator.manifest.architecture
    generation = GenerationRequest(PROMPT, seconds=(shape.window + 60) / 50, seed=5)
    track = generator.start(generation)
    while not track.is_finished:
        generator.engine.step()
        track.advance()
    overlap = int(0.4 * shape.window)
    request = generator.request(generation)
    first = generator.engine.start(replace(request, frames=shape.window))
    generator.engine.run(first)
    again = replace(request, frames=overlap + 60, prefix=first.codes[:, -overlap:], window=1)
    second = generator.engine.start(again)
    generator.engine.run(second)
    assert np.array_equal(track.codes, np.concatenate([first.codes, second.codes[:, overlap:]], axis=1))
    assert len(generator.generate(generation)) == (shape.window + 60) * generator.codec.shape.hop
    with pytest.raises(RequestError, match=rf"to {shape.window / 50:g} \(more with windows\) is allowed"):
        generator.generate(replace(generation, windows=False))


def test_sections_change_the_prompt_and_continue_the_audio(generator: MusicGenerator) -> None:
    """The second section is the engine's continuation of the first one's codes, under the second prompt."""
    other = "a sad waltz for piano"
    generation = GenerationRequest(PROMPT, seconds=0.8, seed=5, sections=(PromptSection(0.4, other),))
    track = generator.start(generation)
    while not track.is_finished:
        generator.engine.step()
        track.advance()
    first = generator.engine.start(generator.request(replace(generation, seconds=0.4, sections=())))
    generator.engine.run(first)
    request = generator.request(replace(generation, prompt=other, sections=()))
    second = generator.engine.start(replace(request, prefix=first.codes, window=1))
    generator.engine.run(second)
    assert np.array_equal(track.codes, second.codes)
    for starts in ((0.0,), (0.8,), (0.5, 0.5)):
        with pytest.raises(RequestError, match="its start must be between"):
            generator.start(replace(generation, sections=tuple(PromptSection(start, other) for start in starts)))
    with pytest.raises(RequestError, match="the beginning needs a prompt"):
        generator.start(replace(generation, prompt=None))


def test_no_prompt_is_the_null_condition(generator: MusicGenerator) -> None:
    """One pass, with the keys and values of the null condition; guidance has no effect."""
    requests = [generator.request(GenerationRequest(None, guidance=scale)) for scale in (1.0, 3.0)]
    for request in requests:
        assert request.uncond is None
        for actual, expected in zip(request.text.arrays, generator.text.null().arrays, strict=True):
            np.testing.assert_array_equal(actual, expected)
    with pytest.raises(RequestError, match="audio without a prompt has none"):
        generator.request(GenerationRequest(None, negative_prompt="drums"))


def test_prompts_that_are_not_unicode_are_refused(generator: MusicGenerator) -> None:
    with pytest.raises(RequestError, match="has bytes that are not UTF-8"):
        generator.request(GenerationRequest("a jig \udcff"))


def test_continuation_of_a_clip(generator: MusicGenerator, model: Any) -> None:
    """The clip's codes are those of transformers' codec, and the music begins with them."""
    clip = np.sin(np.arange(generator.codec.shape.hop * 30 + 3) / 7).astype(np.float32) / 3
    track = generator.start(GenerationRequest(PROMPT, seconds=1, clip=clip))
    while not track.is_finished:
        generator.engine.step()
    with torch.no_grad():
        whole = torch.from_numpy(clip[: generator.codec.shape.hop * 30])[None, None]
        expected = model.audio_encoder.encode(whole).audio_codes[0, 0].numpy()
    assert track.codes.shape == (4, 50)
    assert np.array_equal(track.codes[:, :30], expected)
    with pytest.raises(RequestError, match="clip: has samples that are not finite numbers"):
        generator.generate(GenerationRequest(PROMPT, seconds=1, clip=clip * np.nan))
    with pytest.raises(RequestError, match=r"clip: lasts .* less than the requested 0\.5"):
        generator.generate(GenerationRequest(PROMPT, seconds=0.5, clip=clip))


@pytest.mark.parametrize("words", [10, 80])
def test_long_prompts_of_models_and_bundles(name: str, generator: MusicGenerator, words: int) -> None:
    """Evaluation cuts both at the tokens that the model reads, 48 here; a request is refused."""
    prompt, settings = " ".join(["fiddle", "reel", "slow", "flute"] * (words // 4)), SamplingSettings(0.4, 1.0, 1, 1.0)
    theirs = TorchGenerator(load_musicgen(name), load_tokenizer(name))
    (expected,) = theirs.generate([prompt], [0], settings)
    (actual,) = OnnxGenerator(generator.bundle.folder, 1).generate([prompt], [0], settings)
    np.testing.assert_array_equal(actual.codes, expected.codes)
    if words > 48:
        with pytest.raises(RequestError, match="prompt: 81 tokens; at most 48 are allowed"):
            generator.request(GenerationRequest(prompt))


def test_a_cancelled_request_leaves_the_queue_at_once(generator: MusicGenerator) -> None:
    states = [
        generator.engine.start(generator.request(GenerationRequest(PROMPT, seconds=0.4)))
        for _ in range(generator.engine.max_rows // 2 + 2)
    ]
    generator.engine.step()
    assert generator.engine.waiting == 2
    states[-1].cancel()
    assert generator.engine.waiting == 1
    for state in states:
        state.cancel()
    assert generator.engine.waiting == 0
    generator.engine.reap()
    assert generator.engine.is_idle
    assert {state.status for state in states} == {RequestStatus.CANCELLED}


def test_joined_request_does_not_see_earlier_rows(generator: MusicGenerator) -> None:
    """The newcomer takes the place of one with a long negative prompt, while a third plays on."""
    request = GenerationRequest(PROMPT, seconds=0.4, seed=3, temperature=0)
    alone = codes_of(generator, request)
    generator.engine.start(generator.request(GenerationRequest("a fast flute jig", seconds=1.0)))
    before = generator.engine.start(generator.request(replace(request, negative_prompt="a sad waltz for piano " * 5)))
    for _ in range(5):
        generator.engine.step()
    before.cancel()
    after = generator.engine.start(generator.request(request))
    generator.engine.run(after)
    assert np.array_equal(after.codes, alone)
    while not generator.engine.is_idle:
        generator.engine.step()


def test_decoder_failure_ends_only_the_running_requests(
    generator: MusicGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(codes: Any) -> Any:
        raise MemoryError

    failing = generator.engine.start(generator.request(GenerationRequest(PROMPT, seconds=0.5)))
    with monkeypatch.context() as patch:
        patch.setattr(generator.decoder, "step", out_of_memory)
        generator.engine.step()
        with pytest.raises(EngineError, match="the decoder: not enough memory"):
            generator.generate(GenerationRequest(PROMPT, seconds=0.5))
    assert isinstance(failing.error, EngineError)
    assert generator.decoder.rows == 0
    assert len(generator.generate(GenerationRequest(PROMPT, seconds=0.5))) > 0


def test_invalid_request_in_a_batch_leaves_no_state(generator: MusicGenerator) -> None:
    with pytest.raises(RequestError, match="prompt: is empty"):
        generator.generate_batch([GenerationRequest(PROMPT, seconds=1), GenerationRequest("")])
    assert generator.engine.is_idle


def test_threads_may_generate_concurrently(generator: MusicGenerator) -> None:
    """Each request gets the audio that it would get alone."""
    from concurrent.futures import ThreadPoolExecutor

    requests = [
        GenerationRequest(PROMPT, seconds=0.6, seed=seed, temperature=0, guidance=1 + seed) for seed in range(4)
    ]
    alone = [generator.generate(request) for request in requests]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(generator.generate, requests))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3 * np.abs(one).max())


def test_a_decoder_that_gives_nan(generator: MusicGenerator, model: Any, name: str, tmp_path: Path) -> None:
    """A decoder that gives NaN ends the request with an error, and no other one."""
    broken = load_musicgen(name)
    with torch.no_grad():
        broken.decoder.lm_heads[0].weight.fill_(float("nan"))
    write_bundle(broken, model_location(name) / "tokenizer.json", tmp_path)
    other = load_generator(tmp_path, threads=1)
    with pytest.raises(EngineError, match="logits are not finite at step 0"):
        other.generate(GenerationRequest(PROMPT, seconds=1))
    assert other.engine.is_idle
