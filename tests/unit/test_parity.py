"""The parity check on the house band's graphs: equal graphs pass, changed ones are named."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from scipy.special import log_softmax

from tests.bundles import write_bundle
from tinymusician.codebooks import delay, inputs_for
from tinymusician.errors import ParityError
from tinymusician.models.musicgen import load_musicgen, load_tokenizer, model_location
from tinymusician.quantize.parity import ReferenceOutputs, check, measure, measure_fused
from tinymusician.runtime.bundle import Bundle, read_manifest
from tinymusician.runtime.generator import MusicGenerator
from tinymusician.runtime.rollout import ForcedBatch, compare, rollout, rollout_with_ranges

PROMPTS = ["a slow waltz for the church organ", "a fast fiddle reel"]
GATE = {"kl": 1e-6, "agreement": 0.999, "codec_snr": 60.0}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity") / "float32"
    write_bundle(load_musicgen("band-small"), model_location("band-small") / "tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module")
def sequences() -> ForcedBatch:
    return ForcedBatch(PROMPTS, np.random.default_rng(0).integers(0, 512, (2, 4, 24)))


@pytest.fixture(scope="module")
def reference(sequences: ForcedBatch) -> ReferenceOutputs:
    return ReferenceOutputs(load_musicgen("band-small"), load_tokenizer("band-small"), sequences)


def loaded(folder: Path, exported: Path) -> MusicGenerator:
    return MusicGenerator(Bundle(folder, read_manifest(exported)), threads=1)


def spoiled(exported: Path, folder: Path, graph: str, weight: str, factor: float) -> Path:
    """A copy of the graphs in which one weight is multiplied."""
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    model = onnx.load(str(folder / f"{graph}.onnx"))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == weight)
    tensor.CopyFrom(numpy_helper.from_array(factor * numpy_helper.to_array(tensor), weight))
    onnx.save(model, str(folder / f"{graph}.onnx"))
    return folder


def test_reference_equals_the_decoder_of_transformers(reference: ReferenceOutputs, sequences: ForcedBatch) -> None:
    """Its rows are each sequence with its text, then each without."""
    model, tokenizer = load_musicgen("band-small"), load_tokenizer("band-small")
    pad = model.config.decoder.vocab_size
    inputs = torch.from_numpy(inputs_for(delay(sequences.codes, pad), pad))
    text = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(
            input_ids=text["input_ids"],
            attention_mask=text["attention_mask"],
            decoder_input_ids=inputs.reshape(8, -1),
        ).logits.view(2, 4, -1, pad)
    assert np.abs(output.permute(2, 0, 1, 3).numpy() - reference.logits[:, :2]).max() < 1e-4
    assert reference.logits.shape[1] == 4


def test_float32_graphs_pass(reference: ReferenceOutputs, exported: Path) -> None:
    result = measure_fused(reference, loaded(exported, exported), exported)
    check(result, "float32", **GATE)
    assert result.first_layer == -1
    assert max(result.layer_errors) < 1e-4
    assert set(result.by_part) == {"first step", "delay's beginning", "between", "delay's end", "last step"}


def test_broken_layer_is_named_by_parity(reference: ReferenceOutputs, exported: Path, tmp_path: Path) -> None:
    folder = spoiled(exported, tmp_path / "bad", "decoder", "layers.1.fc1.weight", 1.5)
    result = measure_fused(reference, loaded(folder, exported), folder)
    assert (result.first_layer, result.first_step) == (1, 0)
    with pytest.raises(ParityError, match=r"bad: KL .* at most 1e-06 is allowed \(first off at layer 1, step 0"):
        check(result, "bad", **GATE)


def test_broken_codec_fails_parity(reference: ReferenceOutputs, exported: Path, tmp_path: Path) -> None:
    weights = onnx.load(str(exported / "codec_decoder.onnx")).graph.initializer
    largest = max(weights, key=lambda tensor: np.prod(tensor.dims)).name
    folder = spoiled(exported, tmp_path / "bad", "codec_decoder", largest, 1.2)
    result = measure_fused(reference, loaded(folder, exported), folder)
    with pytest.raises(ParityError, match="the codec's SNR is"):
        check(result, "bad", **GATE)


def test_differences_equal_scipy(sequences: ForcedBatch) -> None:
    random = np.random.default_rng(1)
    one, other = (random.standard_normal((27, 2, 4, 16)).astype(np.float32) for _ in range(2))
    actual = compare(one, other)
    log_p, log_q = (log_softmax(z.astype(np.float64), -1) for z in (one, other))
    expected = (np.exp(log_p) * (log_p - log_q)).sum(-1).mean(1)
    held = ~np.isnan(actual.kl)
    assert held.sum() == 4 * 24, "codebook k is silent for k steps before and 3 - k after its codes"
    assert np.allclose(actual.kl[held], expected[held])
    assert np.allclose(actual.by_codebook, [expected[k : k + 24, k].mean() for k in range(4)])


def test_the_distribution_with_guidance_is_measured(reference: ReferenceOutputs, sequences: ForcedBatch) -> None:
    """z_u + s (z_c - z_u) of both passes: an error in one of them counts s times, or s - 1 times."""
    scale, error = 2.5, np.float32(0.3)
    guided = copy(reference)
    guided.sequences = replace(sequences, guidance=scale)
    changed = reference.logits.copy()
    changed[:, :2, :, 0] += error
    actual = measure(guided, changed, reference.wave)
    conditional, null = (part.astype(np.float64) for part in np.split(reference.logits, 2, axis=1))
    expected = null + scale * (conditional - null)
    shifted = expected.copy()
    shifted[..., 0] += scale * error
    log_p, log_q = log_softmax(expected, -1), log_softmax(shifted, -1)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1).mean(1)
    assert actual.kl == pytest.approx([kl[k : k + 24, k].mean() for k in range(4)], rel=1e-3)
    assert actual.worst_logit == pytest.approx(scale * error, rel=1e-3)


def test_unconditional_rows_can_be_omitted(exported: Path, sequences: ForcedBatch) -> None:
    generator = loaded(exported, exported)
    both = rollout(generator, sequences)
    conditional = rollout(generator, ForcedBatch(sequences.prompts, sequences.codes, null=False))
    assert conditional.shape[1] == 2
    assert np.abs(both[:, :2] - conditional).max() < 1e-4


def test_ranges_hold_every_key_and_value(exported: Path, sequences: ForcedBatch) -> None:
    """The largest keys of the first layer, from PyTorch's own projection of what goes into it."""
    model = load_musicgen("band-small")
    layer = model.decoder.model.decoder.layers[0]
    pad = model.config.decoder.vocab_size
    inputs = torch.from_numpy(inputs_for(delay(sequences.codes, pad), pad))
    inner = model.decoder.model.decoder
    with torch.no_grad():
        x = sum(inner.embed_tokens[book](inputs[:, book]) for book in range(4))
        x = x + inner.embed_positions.weights[: x.shape[1]]
        keys = layer.self_attn.k_proj(layer.self_attn_layer_norm(x))
    _, ranges = rollout_with_ranges(loaded(exported, exported), sequences)
    expected = keys.abs().amax((0, 1)).view(ranges[0][0].shape).numpy()
    assert np.allclose(ranges[0][0], expected, rtol=1e-3, atol=1e-4)
