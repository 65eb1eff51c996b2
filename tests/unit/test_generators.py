"""PyTorch models and bundles as generators; agreement with a teacher against plain sums; inference cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from tests.bundles import write_bundle
from tests.tiny import CAPTIONS, write_tiny_musicgen
from tinymusician.errors import BundleError, ModelError
from tinymusician.evaluate.agreement import agreement
from tinymusician.evaluate.generators import OnnxGenerator, SamplingSettings, TorchGenerator, open_generator
from tinymusician.evaluate.inference_cost import energy, measure, operations
from tinymusician.models.musicgen import load_musicgen

SETTINGS = SamplingSettings(0.4, 3.0, 8, 0.9)


@pytest.fixture(scope="module")
def pair(tiny_musicgen: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchGenerator, OnnxGenerator]:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    write_bundle(load_musicgen(str(tiny_musicgen)), tiny_musicgen / "tokenizer.json", folder)
    torch_one, bundle = open_generator(str(tiny_musicgen)), open_generator(str(folder))
    assert isinstance(torch_one, TorchGenerator)
    assert isinstance(bundle, OnnxGenerator)
    return torch_one, bundle


def test_model_and_bundle_sample_alike(pair: tuple[TorchGenerator, OnnxGenerator]) -> None:
    ours, theirs = (generator.generate(CAPTIONS, [1, 2, 3, 3], SETTINGS) for generator in pair)
    for one, other in zip(ours, theirs, strict=True):
        assert one.codes.shape == (4, 20)
        np.testing.assert_array_equal(one.codes, other.codes)
        np.testing.assert_allclose(one.wave, other.wave, atol=1e-4)
    assert pair[0].rate == pair[1].rate
    assert pair[0].frame_rate == pair[1].frame_rate == 50


def test_both_generators_have_equal_forced_logits(pair: tuple[TorchGenerator, OnnxGenerator]) -> None:
    codes = np.random.default_rng(0).integers(0, 16, (2, 4, 9))
    ours, theirs = (generator.forced(CAPTIONS[:2], codes, 3.0) for generator in pair)
    assert ours.shape == theirs.shape == (4, 4, 12, 16)
    carries = agreement(ours, theirs, 3.0)
    assert carries.forward.max() < 1e-6
    assert carries.top_1.min() == 1


def test_agreement_equals_plain_sums() -> None:
    random = np.random.default_rng(0)
    teacher, model = (random.normal(size=(4, 2, 6, 5)) for _ in range(2))  # two clips, two passes, K 2, T 5, V 5
    actual = agreement(torch.from_numpy(teacher), torch.from_numpy(model), 2.0)
    for clip in range(2):
        for book in range(2):
            forward, reverse, same, plain = [], [], [], []
            for step in range(book, book + 5):
                conditional, unconditional = (side[clip, book, step] for side in (teacher[:2], teacher[2:]))
                mine, alone = (side[clip, book, step] for side in (model[:2], model[2:]))
                p, q = (
                    log_softmax(unconditional + 2 * (conditional - unconditional)),
                    log_softmax(alone + 2 * (mine - alone)),
                )
                forward.append((np.exp(p) * (p - q)).sum())
                reverse.append((np.exp(q) * (q - p)).sum())
                same.append(p.argmax() == q.argmax())
                p, q = log_softmax(conditional), log_softmax(mine)
                plain.append((np.exp(p) * (p - q)).sum())
            for values, expected in zip(actual.arrays().values(), (forward, reverse, same, plain), strict=True):
                assert values[clip, book] == pytest.approx(np.mean(expected), rel=1e-4)


def test_one_pass_model_is_compared_with_the_guided_teacher() -> None:
    teacher = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(0))
    guided = teacher[1:] + 3.0 * (teacher[:1] - teacher[1:])
    result = agreement(teacher, guided, 3.0)
    assert result.forward.max() == pytest.approx(0, abs=1e-6)
    assert np.isnan(result.with_text).all()


def test_inference_cost(pair: tuple[TorchGenerator, OnnxGenerator], monkeypatch: pytest.MonkeyPatch) -> None:
    one = measure(pair[0], CAPTIONS[:3], SETTINGS)
    assert one.length == 0.4
    assert one.real_time_factor == pytest.approx(one.seconds / 0.4)
    assert one.lowest <= one.real_time_factor <= one.highest
    assert one.cpu > 0
    assert one.memory > 50e6
    assert set(one.sizes) == {"text encoder", "decoder", "codec"}
    assert measure(pair[1], CAPTIONS[:1], SETTINGS).flops is None


def test_flops_equal_the_matrix_products(tmp_path: Path) -> None:
    """Twice the layers: what is added is their products, 2 operations a weight, a row and a step."""
    counts = []
    for layers in (2, 4):
        generator = open_generator(str(write_tiny_musicgen(tmp_path / str(layers), layers=layers)))
        assert isinstance(generator, TorchGenerator)
        counts.append(operations(generator, CAPTIONS[0], SETTINGS) * SETTINGS.seconds)
        config = generator.model.config.decoder
    width, wide, steps, rows = config.hidden_size, config.ffn_dim, 20 + 3, 2
    dense = 2 * (4 * width * width + 2 * width * width + 2 * width * wide)  # cross keys and values once a prompt
    assert counts[1] - counts[0] == pytest.approx(2 * dense * steps * rows, rel=0.25)


def test_energy_is_read_from_rapl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinymusician.evaluate.inference_cost._POWERCAP", tmp_path)
    assert energy() is None
    for name, microjoules in (("intel-rapl:0", 5_000_000), ("intel-rapl:1", 2_000_000), ("intel-rapl:0:0", 9_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(str(microjoules))
    assert energy() == pytest.approx(7.0)


def test_unknown_sources_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a bundle"):
        open_generator(str(tmp_path))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(BundleError):
        open_generator(str(tmp_path))
