"""MusicGen in PyTorch: forward pass, sampling and layer pruning against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import MusicgenForConditionalGeneration

from tests.bundles import write_bundle
from tests.tiny import CAPTIONS, write_tiny_musicgen
from tinymusician.codebooks import delay, inputs_for
from tinymusician.errors import ModelError, RecipeError
from tinymusician.models.conditional_decoder import ConditionedDecoder, TextCondition, encode_text
from tinymusician.models.likelihood import code_entropies, cross_entropies, forced_logits
from tinymusician.models.musicgen import load_musicgen, load_tokenizer
from tinymusician.models.prune_layers import check_pair, prune_layers, weights_digest
from tinymusician.models.sampling import decode_audio, sample_codes
from tinymusician.models.shape import RELEASE, RELEASED, is_release, shape_of
from tinymusician.models.tensor_shapes import DecoderShape
from tinymusician.runtime.generator import GenerationRequest, load_generator
from tinymusician.runtime.sampling import guide


def texts(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_tokenizer(str(folder))(CAPTIONS[:3], padding=True, return_tensors="pt"))


def test_hub_folders_are_not_audiocraft_releases(tmp_path: Path) -> None:
    """They hold the files of both layouts."""
    for name in RELEASE:
        (tmp_path / name).touch()
    assert is_release(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not is_release(tmp_path)


def test_logits_agree_with_transformers(tiny_musicgen: Path) -> None:
    model = load_musicgen(str(tiny_musicgen))
    text = texts(tiny_musicgen)
    codes = torch.randint(0, 16, (3, 4, 9)).numpy()
    inputs = torch.from_numpy(inputs_for(delay(codes, 16), 16))
    with torch.no_grad():
        condition = encode_text(model, text["input_ids"], text["attention_mask"])
        ours = ConditionedDecoder(model)(inputs, condition.states, condition.mask)
        theirs = model(**text, decoder_input_ids=inputs.reshape(12, -1)).logits.view(3, 4, 12, 16)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_samples_agree_with_generate(tiny_musicgen: Path, guidance: float) -> None:
    model, text = load_musicgen(str(tiny_musicgen)), texts(tiny_musicgen)
    with torch.no_grad():
        codes = sample_codes(model, encode_text(model, text["input_ids"], text["attention_mask"]), 20, None, guidance)
        wave = model.generate(**text, max_new_tokens=23, do_sample=False, guidance_scale=guidance)
    assert codes.shape == (3, 4, 20)
    assert codes.unique().numel() > 8, "a model that repeats itself proves nothing"
    torch.testing.assert_close(decode_audio(model, codes), wave[:, 0])


def test_samples_follow_the_distribution(tiny_musicgen: Path) -> None:
    """The first code of codebook 0 is drawn with the probabilities of the guided logits, cut at top-k."""
    model, text = load_musicgen(str(tiny_musicgen)), texts(tiny_musicgen)
    draws, top_k, guidance = 4000, 5, 2.0
    with torch.no_grad():
        one = encode_text(model, text["input_ids"][:1], text["attention_mask"][:1])
        many = type(one)(one.states.expand(draws, -1, -1), one.mask.expand(draws, -1))
        codes = sample_codes(model, many, 1, range(draws), guidance, top_k)
        start = torch.full((1, 4, 1), 16)
        logits = [ConditionedDecoder(model)(start, c.states, c.mask)[0, 0, 0] for c in (one, one.without_text())]
    best = guide(*logits, guidance).topk(top_k)
    expected = torch.softmax(best.values, 0)
    counts = torch.stack([(codes[:, 0, 0] == code).sum() for code in best.indices]).double()
    assert counts.sum() == draws
    chi_square = ((counts - draws * expected) ** 2 / (draws * expected)).sum()
    assert chi_square < 18.5  # 0.999 quantile at 4 degrees of freedom


def test_same_seed_same_samples(tiny_musicgen: Path) -> None:
    model, text = load_musicgen(str(tiny_musicgen)), texts(tiny_musicgen)
    with torch.no_grad():
        condition = encode_text(model, text["input_ids"], text["attention_mask"])
    first, again, other = (sample_codes(model, condition, 8, [seed, 8, 9]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], other[0])
    assert torch.equal(first[1:], other[1:])


def test_layer_pruned_student_is_the_teacher_without_the_other_layers(tiny_musicgen: Path, tmp_path: Path) -> None:
    teacher = load_musicgen(str(tiny_musicgen))
    student = prune_layers(teacher, [0, 3])
    student.save_pretrained(tmp_path)
    student = MusicgenForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert student.config.decoder.num_hidden_layers == 2
    layers = teacher.decoder.model.decoder.layers
    teacher.decoder.model.decoder.layers = torch.nn.ModuleList([layers[0], layers[3]])
    inputs = torch.randint(0, 16, (2, 4, 7))
    states, mask = torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.long)
    with torch.no_grad():
        torch.testing.assert_close(
            ConditionedDecoder(student)(inputs, states, mask), ConditionedDecoder(teacher)(inputs, states, mask)
        )


def test_training_does_not_change_the_teacher(tiny_musicgen: Path) -> None:
    teacher = load_musicgen(str(tiny_musicgen))
    before = weights_digest(teacher)
    student = prune_layers(teacher, [1])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert weights_digest(teacher) == before != weights_digest(student)


def test_missing_layers(tiny_musicgen: Path) -> None:
    teacher = load_musicgen(str(tiny_musicgen))
    with pytest.raises(RecipeError, match="layer 4; the teacher's are 0 to 3"):
        prune_layers(teacher, [0, 4])
    with pytest.raises(RecipeError, match="5 layers; the teacher has 4"):
        prune_layers(teacher, [0, 1, 2, 3, 3])


def test_pairs_that_do_not_fit(tiny_musicgen: Path) -> None:
    teacher, student = load_musicgen(str(tiny_musicgen)), load_musicgen(str(tiny_musicgen))
    check_pair(teacher, student)
    student.config.decoder.num_codebooks = 8
    with pytest.raises(ModelError, match="codebooks 8; the teacher's are 4"):
        check_pair(teacher, student)


def test_unavailable_weights() -> None:
    with pytest.raises(ModelError, match=r"facebook/musicgen-small.*hub cannot be reached.*download its") as caught:
        load_musicgen("facebook/musicgen-small")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="no such folder"):
        load_musicgen("./nowhere")


def test_damaged_weights(tmp_path: Path) -> None:
    folder = write_tiny_musicgen(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged") as caught:
        load_musicgen(str(folder))
    assert "\n" not in str(caught.value)


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    folder = write_tiny_musicgen(tmp_path / "model")
    weights = load_musicgen(str(folder)).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="has pickled weights alone; `tmctl models convert"):
        load_musicgen(str(folder))


def test_shapes_count_as_transformers_does(tiny_musicgen: Path) -> None:
    model, shape = load_musicgen(str(tiny_musicgen)), shape_of(str(tiny_musicgen))
    assert shape == DecoderShape(4, 32, 48, 4, 16, 16, positions=256, frame_rate=50.0, heads=4)
    assert shape.parameters == sum(p.numel() for p in model.decoder.parameters())


def test_released_shapes_have_the_published_sizes() -> None:
    sizes = {name.rpartition("-")[2]: shape.parameters for name, shape in RELEASED.items()}
    assert sizes["small"] == pytest.approx(419.6e6, rel=1e-3)
    assert sizes["medium"] == pytest.approx(1.84e9, rel=5e-3)
    assert sizes["large"] == pytest.approx(3.26e9, rel=5e-3)


def test_unreadable_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"decoder": {}}))
    with pytest.raises(ModelError, match="not a MusicGen's"):
        shape_of(str(tmp_path))


def test_seeds_give_each_row_the_engines_random_numbers(tiny_musicgen: Path, tmp_path: Path) -> None:
    model, tokenizer = load_musicgen(str(tiny_musicgen)), load_tokenizer(str(tiny_musicgen))
    text = tokenizer(CAPTIONS[:2], padding=True, return_tensors="pt")
    with torch.no_grad():
        condition = encode_text(model, text["input_ids"], text["attention_mask"])
        both = sample_codes(model, condition, 12, [5, 9], 3.0, 8, 0.9)
        alone = sample_codes(model, TextCondition(condition.states[1:], condition.mask[1:]), 12, [9], 3.0, 8, 0.9)
    assert torch.equal(both[1:], alone)
    write_bundle(model, tiny_musicgen / "tokenizer.json", tmp_path / "bundle")
    generator = load_generator(tmp_path / "bundle")
    request = GenerationRequest(CAPTIONS[1], seconds=12 / 50, seed=9, guidance=3.0, temperature=0.9, top_k=8)
    generation = generator.engine.start(generator.request(request))
    generator.engine.run(generation)
    assert torch.equal(both[1], torch.from_numpy(generation.codes))


def test_teacher_nll_equals_a_plain_sum(tiny_musicgen: Path) -> None:
    model, text = load_musicgen(str(tiny_musicgen)), texts(tiny_musicgen)
    codes = np.random.default_rng(0).integers(0, 16, (3, 4, 9))
    with torch.no_grad():
        condition = encode_text(model, text["input_ids"], text["attention_mask"])
    logits, _ = forced_logits(model, condition, codes)
    log = torch.log_softmax(logits.double(), -1).numpy()
    for clip in range(3):
        terms = [-log[clip, k, t + k, codes[clip, k, t]] for k in range(4) for t in range(9)]
        assert cross_entropies(logits, codes)[clip].item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_code_entropy_tells_loops_from_music() -> None:
    assert code_entropies(np.full((2, 4, 10), 7)).tolist() == [0, 0]
    assert code_entropies(np.tile(np.arange(8), (1, 4, 1))) == pytest.approx(np.log(8))
