"""The teacher's decode loop: equal codes in any batch, and draws that agree with the engine's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import CAPTIONS
from tinymusician.codebooks import valid
from tinymusician.data.tokens import tokenize_captions
from tinymusician.distill.sequences import TeacherSamples
from tinymusician.errors import ModelError
from tinymusician.models.conditional_decoder import encode_text
from tinymusician.models.decode_loop import DecodeLoop, DecodeShape
from tinymusician.models.decoder_weights import decoder_weights
from tinymusician.models.draw import draw_codes
from tinymusician.models.musicgen import load_musicgen, load_tokenizer
from tinymusician.models.protocols import Musicgen
from tinymusician.models.sampling import CodeSampler, sample_codes, sample_seed
from tinymusician.runtime.sampling import SamplingParams, draw

FRAMES = 40


def samples(
    model: Musicgen, folder: Path, texts: list[str], batch_size: int, dtype: torch.dtype
) -> dict[tuple[str, int], bytes]:
    """The codes of two samples for each text, by text and number."""
    source = TeacherSamples(model, load_tokenizer(str(folder)), texts, 2, FRAMES, 3.0, 12, 1.0, 7, 2, batch_size, dtype)
    codes = np.concatenate([source.make(shard)["codes"] for shard in range(source.shards)])
    return {(text, number): codes[2 * row + number].tobytes() for row, text in enumerate(texts) for number in range(2)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_depend_on_seed_prompt_and_sample_alone(tiny_musicgen: Path, dtype: torch.dtype) -> None:
    """Not on batch size, order, or the other prompts of a shard."""
    model = load_musicgen(str(tiny_musicgen))
    expected = samples(model, tiny_musicgen, CAPTIONS, 32, dtype)
    assert len(set(expected.values())) == len(expected)
    for batch_size in (1, 3):
        assert samples(model, tiny_musicgen, CAPTIONS[::-1], batch_size, dtype) == expected


def test_draws_on_the_device_equal_the_engines() -> None:
    logits = np.random.default_rng(0).standard_normal((500, 4, 64)).astype(np.float32) * 3
    uniforms = np.random.default_rng(1).random((500, 4))
    for sampling in (SamplingParams(1.0, 12), SamplingParams(0.7, 0), SamplingParams(1.3, 64), SamplingParams(0)):
        drawn = draw_codes(torch.from_numpy(logits), torch.from_numpy(uniforms), sampling).numpy()
        assert np.array_equal(drawn, draw(logits, uniforms, sampling))


def test_a_run_does_not_depend_on_earlier_runs(tiny_musicgen: Path) -> None:
    """A loop uses its buffers again, for other texts and numbers of frames."""
    model = load_musicgen(str(tiny_musicgen))
    ids, mask = (torch.from_numpy(part) for part in tokenize_captions(load_tokenizer(str(tiny_musicgen)), CAPTIONS))
    with torch.no_grad():
        texts = [encode_text(model, ids[rows], mask[rows]) for rows in (slice(0, 2), slice(2, 4))]
    sampler = CodeSampler(model)
    for text, frames in ((texts[0], 9), (texts[1], 9), (texts[0], 5), (texts[0], 9)):
        assert torch.equal(sampler.sample(text, frames, [1, 2]), sample_codes(model, text, frames, [1, 2]))


def test_positions_that_are_not_computed_yet_have_no_effect(tiny_musicgen: Path) -> None:
    """CUDA graphs read the cache in multiples of a number of positions."""
    model = load_musicgen(str(tiny_musicgen))
    weights, shape = decoder_weights(model), DecodeShape(8, 23, 4, 3.0, SamplingParams(1.0, 12))
    states, mask = torch.randn(8, 4, model.decoder.config.hidden_size), torch.ones(8, 4)
    carries, uniforms = torch.from_numpy(valid(4, 20).T), torch.rand(23, 8, 4, dtype=torch.float64)
    exact, rounded = (DecodeLoop(weights, shape, multiple).run(states, mask, carries, uniforms) for multiple in (1, 16))
    assert exact is not None
    assert rounded is not None
    assert torch.equal(exact, rounded)


def test_bfloat16_products_give_close_codes(tiny_musicgen: Path) -> None:
    model = load_musicgen(str(tiny_musicgen))
    ids, mask = (torch.from_numpy(part) for part in tokenize_captions(load_tokenizer(str(tiny_musicgen)), CAPTIONS))
    with torch.no_grad():
        text = encode_text(model, ids, mask)
    seeds = [sample_seed(0, row) for row in range(len(ids))]
    exact, close = (CodeSampler(model, dtype).sample(text, 3, seeds) for dtype in (torch.float32, torch.bfloat16))
    assert (exact == close).double().mean() > 0.8


def test_weights_that_are_not_finite_are_an_error(tiny_musicgen: Path) -> None:
    model = load_musicgen(str(tiny_musicgen))
    ids, mask = (torch.from_numpy(part) for part in tokenize_captions(load_tokenizer(str(tiny_musicgen)), CAPTIONS))
    with torch.no_grad():
        model.decoder.model.decoder.layer_norm.weight.fill_(torch.inf)
        text = encode_text(model, ids, mask)
    with pytest.raises(ModelError, match="sampling: the decoder gave no finite numbers"):
        sample_codes(model, text, 3, None)
