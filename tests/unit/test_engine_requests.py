"""Requests that the engine refuses, one line each, and requests that end once."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import write_bundle
from tinymusician.errors import EngineError, RequestError
from tinymusician.models.musicgen import load_musicgen
from tinymusician.runtime.engine import RequestStatus
from tinymusician.runtime.generator import GenerationRequest, MusicGenerator, load_generator

PROMPT = "a slow fiddle reel"


@pytest.fixture(scope="module")
def generator(tiny_musicgen: Path, tmp_path_factory: pytest.TempPathFactory) -> MusicGenerator:
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(load_musicgen(str(tiny_musicgen)), tiny_musicgen / "tokenizer.json", folder, continuation=True)
    return load_generator(folder, 1)


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        (GenerationRequest(""), "prompt: is empty"),
        (GenerationRequest("  \n"), "prompt: is empty"),
        (GenerationRequest("x" * 10_000), "prompt: 10000 characters; at most 5000"),
        (GenerationRequest("a slow fiddle reel " * 250), "tokens; at most 48"),
        (GenerationRequest("x", seconds=1, seed=-1), "seed -1"),
        (GenerationRequest("x", seconds=1, guidance=float("inf")), "guidance inf"),
        (GenerationRequest("x", seconds=1, temperature=1e-309), "temperature 1e-309"),
        (GenerationRequest("x", seconds=1, negative_prompt=" "), "negative_prompt: is empty"),
        (GenerationRequest("x", seconds=1, guidance=1, negative_prompt="y"), "guidance 1 has none"),
        (GenerationRequest("x", seconds=1, clip=np.zeros(10, np.float32)), "clip: lasts"),
        (GenerationRequest("x", seconds=0), "seconds 0: 0"),
        (GenerationRequest("x", seconds=-1), "seconds -1: 0"),
        (GenerationRequest("x", seconds=1e9), "seconds 1e+09: 0"),
        (GenerationRequest("x", seconds=1, guidance=-1), "guidance -1"),
        (GenerationRequest("x", seconds=1, guidance=float("nan")), "guidance nan"),
        (GenerationRequest("x", seconds=1, temperature=-0.1), "temperature -0.1"),
        (GenerationRequest("x", seconds=1, top_k=-5), "top_k -5"),
        (GenerationRequest("x", seconds=1, top_p=0), "top_p 0: more than 0"),
        (GenerationRequest("x", seconds=1, top_k=2.5), "top_k 2.5: 0 (all codes) or more is allowed"),
        (GenerationRequest("x", seconds=1, temperature=Fraction(1, 2)), "temperature Fraction(1, 2): 0 (greedy), or"),
        (GenerationRequest("x", seconds=1, temperature=10**400), "0 (greedy), or 0.01 to 100 is allowed"),
        (GenerationRequest("x", seconds=1, top_k=float("nan")), "top_k nan"),
        (GenerationRequest("x", seconds=1, top_k=True), "top_k 1"),
        (GenerationRequest("x", seconds=1, top_p=float("nan")), "top_p nan"),
        (GenerationRequest("x", seconds=1, temperature="1"), "temperature '1'"),
        (GenerationRequest("x", seconds=1, seed=1.5), "seed 1.5: a whole number"),
        (GenerationRequest("x", seconds=1, guidance=[3.0]), "guidance [3.0]"),
        (GenerationRequest("x", seconds="5"), "seconds '5'"),
        (GenerationRequest(b"x", seconds=1), "prompt b'x': text is allowed"),
        (GenerationRequest("x", seconds=1, negative_prompt=3), "negative_prompt 3: text is allowed"),
        (GenerationRequest("x", seconds=1, clip=np.zeros((2, 400), np.float32)), "clip: has 2 axes"),
    ],
)
def test_invalid_requests(generator: MusicGenerator, generation: GenerationRequest, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        generator.generate(generation)
    assert message in str(caught.value)
    assert generator.engine.is_idle


def test_the_engine_takes_no_wrong_request(generator: MusicGenerator) -> None:
    """The others of its batch go on."""
    state = generator.engine.start(generator.request(GenerationRequest(PROMPT, seconds=0.4)))
    generator.engine.step()
    for field, value in (("top_k", 2.5), ("top_k", float("nan")), ("top_p", None), ("temperature", "1")):
        with pytest.raises(RequestError, match=field):
            replace(state.request.sampling, **{field: value})
    for field, value in (("seed", 1.5), ("seed", "1"), ("guidance", float("nan"))):
        with pytest.raises(RequestError, match=field):
            replace(state.request, **{field: value})
    generator.engine.run(state)
    assert state.status is RequestStatus.FINISHED


def test_a_final_status_stays(generator: MusicGenerator) -> None:
    state = generator.engine.start(generator.request(GenerationRequest(PROMPT, seconds=0.4)))
    state.cancel()
    state.fail(EngineError("later"))
    state.transition(RequestStatus.FINISHED)
    assert (state.status, state.error) == (RequestStatus.CANCELLED, None)
