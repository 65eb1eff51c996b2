"""Files of models that answer questions: a round trip, and the names and refusals of published checkpoints."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from jobs.cli.main import app
from tinymusician.errors import ModelError
from tinymusician.models.audio_encoder import AudioEncoder, AudioEncoderShape
from tinymusician.models.audio_lm import AudioLM, AudioLMShape, LanguageModelShape
from tinymusician.models.audio_lm_files import (
    load_audio_lm,
    load_matpac,
    load_tinymu,
    model_folder,
    read_shape,
    round_weights,
    save_audio_lm,
)
from tinymusician.models.checkpoint_files import read_tokenizer
from tinymusician.models.spectral_front_end import FrontEndConfig, Scale
from tinymusician.understand.tokenizer import train_tokenizer

SHAPE = AudioLMShape(
    AudioEncoderShape(16, 1, 2, 32, 4, FrontEndConfig(Scale(-1, 2), Scale(-3, 4))),
    24,
    LanguageModelShape(vocabulary=20, width=32, layers=1, heads=4, key_value_heads=2, feed_forward=48),
)


def small() -> AudioLM:
    torch.manual_seed(0)
    model = AudioLM(SHAPE).eval()
    round_weights(model)
    return model


def published(model: AudioLM) -> dict[str, torch.Tensor]:
    """The tensors under the names of TinyMU's code, with those that it stores besides."""
    names = {"audio_encoder.": "audio_encoder.enc.", "projector.": "projector.", "lm.": "text_decoder.lm."}
    state = {}
    for name, value in model.state_dict().items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        state[names[prefix] + name.removeprefix(prefix)] = value
    return state | {"audio_encoder.enc.log_mel.MelSpectrogram.spectrogram.window": torch.zeros(400)}


def same_outputs(one: AudioLM, other: AudioLM) -> bool:
    waves, ids = torch.randn(1, 1600), torch.tensor([[3, 4, 5]])
    logits = [m(m.audio_encoder(waves), ids, torch.ones_like(ids, dtype=torch.bool)) for m in (one, other)]
    return torch.equal(*logits)


def test_model_survives_its_folder(tmp_path: Path) -> None:
    model = small()
    save_audio_lm(tmp_path, model, "{}")
    again = load_audio_lm(tmp_path)
    assert again.shape == SHAPE
    assert same_outputs(model, again)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state}])
def test_published_checkpoint_loads_by_its_names(tmp_path: Path, wrap: object) -> None:
    model = small()
    torch.save(wrap(published(model)), tmp_path / "tinymu.pt")  # type: ignore[operator]
    assert same_outputs(model, load_tinymu(tmp_path / "tinymu.pt", SHAPE))
    encoder = dict(model.audio_encoder.state_dict())
    torch.save(encoder, tmp_path / "matpac.pt")
    assert isinstance(load_matpac(tmp_path / "matpac.pt", SHAPE.audio_encoder), AudioEncoder)


def test_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({"model": Payload()}, tmp_path / "zip.pt")
    for name in ("evil.pt", "zip.pt"):
        with pytest.raises(ModelError, match="cannot be read as plain tensors"):
            load_tinymu(tmp_path / name, SHAPE)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda state: state.pop("projector.linear1.bias"),
            "1 of .* tensors are missing, such as projector.linear1.bias",
        ),
        (lambda state: state.update(extra=torch.zeros(1)), "tensors are not those of this model, such as extra"),
        (lambda state: state.update({"projector.linear1.bias": torch.zeros(3)}), r"another shape.*\[3\]; \[24\]"),
        (lambda state: state["projector.linear1.bias"].fill_(torch.nan), "projector.linear1.bias are not finite"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, spoil: object, message: str) -> None:
    state = published(small())
    spoil(state)  # type: ignore[operator]
    torch.save(state, tmp_path / "tinymu.pt")
    with pytest.raises(ModelError, match=message):
        load_tinymu(tmp_path / "tinymu.pt", SHAPE)


def test_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config.json cannot be read"):
        load_audio_lm(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "musicgen"}')
    with pytest.raises(ModelError, match="is of type 'musicgen'; tinymusician-audio-lm is needed"):
        load_audio_lm(tmp_path)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("lm", {"heads": 0}, "heads 0; an integer from 1 to 1048576 is needed"),
        ("lm", {"width": "256"}, "width '256'; an integer"),
        ("lm", {"layers": True}, "layers True; an integer"),
        ("lm", {"end": -1}, "end -1; an integer from 0"),
        ("lm", {"vocabulary": 2**40}, "vocabulary 1099511627776; an integer"),
        ("lm", {"rope_theta": 0}, "rope_theta 0; a positive number is needed"),
        ("lm", {"key_value_heads": 3}, "heads 4; a multiple of 3 key_value_heads is needed"),
        ("audio_encoder", {"heads": 5}, "width .*; a multiple of 5 heads is needed"),
        (None, {"projector_width": -1}, "projector_width -1; an integer"),
        (None, {"lm": None}, "NoneType"),
    ],
)
def test_shapes_that_cannot_be(tmp_path: Path, part: str | None, values: dict[str, object], message: str) -> None:
    content = json.loads((model_folder("band-mu") / "config.json").read_text())
    (content if part is None else content[part]).update(values)
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=rf"config\.json cannot be read .*{message}"):
        read_shape(tmp_path)


def test_a_tokenizer_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"model 'teacher': tokenizer\.json cannot be read"):
        read_tokenizer(tmp_path, "teacher")


def test_tinymu_is_converted_to_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command, with a model of a smaller shape in place of the 229 million parameters."""
    monkeypatch.setattr("tinymusician.models.audio_lm_files.AudioLMShape", lambda: SHAPE)
    model, words = small(), train_tokenizer(["Which instrument?"], 300)
    torch.save(published(model), tmp_path / "tinymu.pt")
    words.save(str(tmp_path / "smollm2.json"))
    convert = ["models", "convert", str(tmp_path / "tinymu.pt"), str(tmp_path / "new")]
    refused = CliRunner().invoke(app, convert)
    assert isinstance(refused.exception, ModelError)
    assert "--tokenizer" in str(refused.exception)
    assert not (tmp_path / "new").exists()
    ended = CliRunner().invoke(app, [*convert, "--tokenizer", str(tmp_path / "smollm2.json")], catch_exceptions=False)
    assert "parameters" in ended.output
    monkeypatch.undo()
    assert same_outputs(model, load_audio_lm(tmp_path / "new"))
    assert (tmp_path / "new" / "tokenizer.json").read_text() == words.to_str()
