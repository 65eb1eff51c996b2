"""An audiocraft release in transformers' layout, compared with audiocraft."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.environments.build import IN, answered
from tinymusician.errors import ModelError
from tinymusician.evaluate.generators import SamplingSettings, open_generator
from tinymusician.models.audiocraft import convert_cached
from tinymusician.models.conditional_decoder import ConditionedDecoder, encode_text
from tinymusician.models.musicgen import load_musicgen, load_tokenizer
from tinymusician.models.shape import is_release
from tinymusician.recipe import load_recipe

pytestmark = [pytest.mark.slow, pytest.mark.environments]

PROMPTS = ["calm piano", "loud jazz guitar"]


@pytest.fixture(scope="module", params=IN)
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny release with random weights, written by audiocraft, and its answers in reference.npz."""
    folder = tmp_path_factory.mktemp("audiocraft") / "release"
    answered(request.param, "audiocraft", "audiocraft_reference.py", folder)
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_logits_and_codes_are_audiocrafts(release: Path) -> None:
    assert is_release(release)
    model, tokenizer = load_musicgen(str(release)), load_tokenizer(str(release))
    expected = np.load(release / "reference.npz")
    for number, prompt in enumerate(PROMPTS):
        text = tokenizer([prompt], return_tensors="pt")
        with torch.no_grad():
            condition = encode_text(model, text["input_ids"], text["attention_mask"])
            codes = torch.from_numpy(expected["codes"][number : number + 1])
            logits = ConditionedDecoder(model)(codes, condition.states, condition.mask)
        np.testing.assert_allclose(logits[0].numpy(), expected["logits"][number], atol=1e-4)
    with torch.no_grad():
        encoded = model.audio_encoder.encode(torch.from_numpy(expected["wave"])).audio_codes[0]
        played = model.audio_encoder.decode(torch.from_numpy(expected["encoded"])[None], [None]).audio_values
    np.testing.assert_array_equal(encoded.numpy(), expected["encoded"])
    np.testing.assert_allclose(played.numpy(), expected["played"], atol=1e-4)
    assert model.generation_config.guidance_scale == 3.0
    assert model.generation_config.max_length == 30 * 25 + 3


def test_it_is_converted_once(release: Path) -> None:
    first = convert_cached(release)
    stamp = (first / "config.json").stat().st_mtime_ns
    assert convert_cached(release) == first
    assert (first / "config.json").stat().st_mtime_ns == stamp


def test_it_plays(release: Path) -> None:
    """What evaluates models takes a release as any other folder."""
    generator = open_generator(str(release))
    (played,) = generator.generate(["loud jazz guitar"], [0], SamplingSettings(0.4, 3.0, 64, 1.0))
    assert played.codes.shape == (4, 10)
    assert np.isfinite(played.wave).all()


def test_it_teaches(release: Path) -> None:
    """`teacher: {kind: audiocraft}` gives a pair that distillation takes."""
    from jobs.distill.models import load_models
    from jobs.launch.validate import check

    sets = ("teacher.kind=audiocraft", f"teacher.model={release}", "student.layers=[1]", "sequences.seconds=2")
    recipe = load_recipe("band", sets)
    check("distill", recipe, here=True)
    pair = load_models(recipe)
    assert pair.student.config.decoder.num_hidden_layers == 1


def test_invalid_document_is_rejected(release: Path, tmp_path: Path) -> None:
    from jobs.launch.validate import check

    with pytest.raises(ModelError, match=r"no audiocraft release; state_dict\.bin and compression_state_dict\.bin"):
        check("distill", load_recipe("band", ("teacher.kind=audiocraft", f"teacher.model={tmp_path}")), here=True)
    package = torch.load(release / "state_dict.bin", weights_only=True)
    stereo = package["xp.cfg"].replace("modeling: delay", "modeling: parallel")
    for name in ("state_dict.bin", "compression_state_dict.bin"):
        torch.save({**package, "xp.cfg": stereo}, tmp_path / name)
    with pytest.raises(ModelError, match="the delay pattern is needed"):
        convert_cached(tmp_path)
    (tmp_path / "state_dict.bin").write_bytes((release / "state_dict.bin").read_bytes())
    (tmp_path / "compression_state_dict.bin").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"compression_state_dict\.bin: no exported checkpoint of audiocraft"):
        convert_cached(tmp_path)
    (tmp_path / "state_dict.bin").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="no exported checkpoint of audiocraft"):
        convert_cached(tmp_path)
