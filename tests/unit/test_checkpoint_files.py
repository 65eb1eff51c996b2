"""What `--dry-run` says about models and clips without loading them: one line each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from jobs.cli.main import app
from jobs.launch.prepare import with_sampling_defaults
from tinymusician.data.captioned import check_clip_folder
from tinymusician.errors import DataError, ModelError
from tinymusician.models.checkpoint_files import check_checkpoint
from tinymusician.models.guidance import add_guidance_conditioning, plays_in_one_pass, set_default_guidance
from tinymusician.models.musicgen import load_musicgen, load_tokenizer
from tinymusician.models.saving import save_musicgen
from tinymusician.models.shape import WEIGHTS
from tinymusician.quantize.export import architecture_of
from tinymusician.recipe import load_recipe, parse_recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A packaged model in a folder."""
    return Path(shutil.copytree(WEIGHTS / "band-small", tmp_path / "model"))


def edit(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text())
    for path, value in changes.items():
        *sections, last = path.split("__")
        section = content
        for name in sections:
            section = section[name]
        section[last] = value
    file.write_text(json.dumps(content))


def test_a_complete_model_passes(folder: Path) -> None:
    check_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "musicgen_melody"}, "conditioned on melodies"),
        ({"model_type": "bert"}, "model_type 'bert'; allowed is musicgen"),
        ({"decoder__audio_channels": 2}, "has 2 audio channels"),
        ({"text_encoder__model_type": "umt5"}, r"text_encoder\.model_type 'umt5'; allowed is t5"),
        ({"audio_encoder__model_type": "dac"}, r"audio_encoder\.model_type 'dac'; allowed is encodec"),
        ({"audio_encoder__audio_channels": 2}, "has 2 audio channels"),
        ({"decoder": None}, "has no section decoder"),
        ({"text_encoder": [1]}, "has no section text_encoder"),
        ({"audio_encoder__upsampling_ratios": "x"}, "is not a MusicGen's"),
        ({"decoder__num_codebooks": 9}, "the decoder has 9 codebooks of"),
    ],
)
def test_kinds_that_are_not_supported(folder: Path, changes: dict[str, object], message: str) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=message):
        check_checkpoint(folder)


def test_missing_files(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer; tokenizer\.json belongs there"):
        check_checkpoint(folder)
    (folder / "spiece.model").touch()
    with pytest.raises(ModelError, match="SentencePiece model alone; `tmctl models convert"):
        check_checkpoint(folder)
    (folder / "tokenizer.json").touch()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    weights = (folder / "model.safetensors").rename(folder / names[0])
    with pytest.raises(ModelError, match=f"has no {names[1]}"):
        check_checkpoint(folder)
    save_file({}, folder / names[1])
    check_checkpoint(folder)
    (folder / names[1]).write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=f"{names[1]} is damaged"):
        check_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        check_checkpoint(folder)


def test_pickled_weights_in_several_files(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(ModelError, match="has pickled weights alone; `tmctl models convert"):
        check_checkpoint(folder)


def test_one_file_is_read_before_an_index(folder: Path) -> None:
    """As transformers does."""
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    check_checkpoint(folder)
    load_musicgen(str(folder))


@pytest.mark.parametrize("content", ['{"weight_map": ["a"]}', "{}", "[]"])
def test_an_index_that_is_none(folder: Path, content: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json (has no weight_map|is no JSON object)"):
        check_checkpoint(folder)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_types_of_weights(folder: Path, dtype: str) -> None:
    """Half precision is loaded; integers are named."""
    tensors = {
        name: value.to(getattr(torch, dtype))
        for name, value in safetensors.torch.load_file(folder / "model.safetensors").items()
    }
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if dtype == "int8":
        with pytest.raises(ModelError, match=r"tensors are not F16, BF16, F32, F64, such as .*: I8"):
            check_checkpoint(folder)
    else:
        check_checkpoint(folder)
        assert load_musicgen(str(folder)).decoder.lm_heads[0].weight.dtype == torch.float32


def test_dry_run_names_what_is_wrong_with_a_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As teacher, as a model to compress and as one to evaluate."""
    monkeypatch.setenv("TMCTL_STORE", f"file://{tmp_path}/store")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(HEAD)
    save_file(tensors, folder / "model.safetensors")
    for words in (
        ("distill", "band", "--set", f"teacher.model={folder}"),
        ("quantize", "band", "--model", str(folder)),
        ("evaluate", "band", "--model", str(folder)),
        ("evaluate", "band", "--model", "untrained", "--set", f"teacher.model={folder}"),
    ):
        ended = CliRunner().invoke(app, ["submit", *words, "--dry-run"])
        assert isinstance(ended.exception, ModelError), words
        assert f"1 of 109 tensors are missing, such as {HEAD}" in str(ended.exception)


def test_an_audiocraft_training_checkpoint(tmp_path: Path) -> None:
    """Its export is audiocraft's own; the message names both functions."""
    (tmp_path / "checkpoint.th").touch()
    with pytest.raises(ModelError, match=r"training checkpoint of audiocraft; .*export_lm\('checkpoint\.th'"):
        check_checkpoint(tmp_path)
    with pytest.raises(ModelError, match="training checkpoint"):
        load_musicgen(str(tmp_path))


HEAD, NORM = "decoder.lm_heads.0.weight", "decoder.model.decoder.layer_norm.weight"


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({HEAD: None}, f"1 of 109 tensors are missing, such as {HEAD}$"),
        ({HEAD: f"x.{HEAD}"}, f"1 of 109 tensors are missing, such as {HEAD}; 1 tensors are not those .* x.{HEAD}$"),
        (
            {HEAD: NORM, NORM: HEAD},
            rf"2 tensors have another shape, such as {HEAD}: \[256\]; \[512, 256\] is",
        ),
    ],
)
def test_tensors_of_another_model(folder: Path, rename: dict[str, str | None], message: str) -> None:
    """A model with such files is not loaded with random weights either."""
    file = folder / "model.safetensors"
    tensors = {rename.get(name, name): value for name, value in load_file(file).items()}
    save_file({name: value for name, value in tensors.items() if name is not None}, file)
    with pytest.raises(ModelError, match=message):
        check_checkpoint(folder)
    with pytest.raises(ModelError, match=message):
        load_musicgen(str(folder))


def test_other_names_of_the_same_tensors(folder: Path) -> None:
    """Those of PyTorch 1's weight norm, of a tied embedding, and positions that are computed now."""
    file = folder / "model.safetensors"
    expected = {name: value.numpy() for name, value in load_musicgen(str(folder)).state_dict().items()}
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    tensors = load_file(file)
    for name in list(tensors):
        for new, former in old.items():
            if name.endswith(new):
                tensors[name.replace(new, former)] = tensors.pop(name)
    tensors["text_encoder.encoder.embed_tokens.weight"] = tensors.pop("text_encoder.shared.weight")
    tensors["decoder.model.decoder.embed_positions.weights"] = np.zeros((8, 8), np.float32)
    save_file(tensors, file, metadata={"format": "pt"})
    check_checkpoint(folder)
    for name, value in load_musicgen(str(folder)).state_dict().items():
        np.testing.assert_array_equal(value.numpy(), expected[name])


def test_weights_that_are_not_finite_are_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[HEAD][3, 5] = np.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"1 of 131072 weights of {HEAD} are not finite numbers"):
        load_musicgen(str(folder))


def test_a_guidance_conditioned_student_passes(folder: Path, tmp_path: Path) -> None:
    student = add_guidance_conditioning(load_musicgen(str(folder)), 1.0, 4.0)
    save_musicgen(tmp_path / "student", student, load_tokenizer(str(folder)))
    check_checkpoint(tmp_path / "student")
    load_musicgen(str(tmp_path / "student"))


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_class": "TokenizersBackend"},
        {"extra_special_tokens": ["<extra_id_0>", "<extra_id_1>"]},
        {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": {"first": "<extra_id_0>"}},
        {"tokenizer_class": "TokenizersBackend", "pad_token": {"__type": "AddedToken", "content": "<pad>"}},
    ],
)
def test_tokenizers_of_transformers_5(folder: Path, changes: dict[str, object]) -> None:
    before = load_tokenizer(str(folder))(["a fast reel", "a waltz"], padding=True)
    edit(folder / "tokenizer_config.json", **changes)
    after = load_tokenizer(str(folder))
    assert dict(after(["a fast reel", "a waltz"], padding=True)) == dict(before)
    after.save_pretrained(folder)
    assert dict(load_tokenizer(str(folder))(["a fast reel", "a waltz"], padding=True)) == dict(before)


@pytest.mark.parametrize(
    ("content", "positions", "frames"),
    [
        (None, 1024, 1021),
        (None, 2048, 1500),
        ({"max_length": 20}, 2048, 1500),
        ({"max_length": 254, "guidance_scale": 1.0}, 2048, 254),
        ({"max_new_tokens": 100}, 2048, 100),
        ({"max_length": 10**6}, 2048, 1500),
    ],
)
def test_unusual_generation_settings(
    folder: Path, content: dict[str, object] | None, positions: int, frames: int
) -> None:
    """They never say that a model needs one pass, nor give it windows longer than its positions or 30 seconds."""
    file = folder / "generation_config.json"
    file.unlink()
    if content is not None:
        file.write_text(json.dumps(content))
    model = load_musicgen(str(folder))
    assert not plays_in_one_pass(model)
    model.config.decoder.max_position_embeddings = positions
    assert architecture_of(model).window == frames
    set_default_guidance(model, 3.0, is_distilled=True)
    save_musicgen(folder / "student", model, load_tokenizer(str(folder)))
    assert plays_in_one_pass(load_musicgen(str(folder / "student")))


def test_clips_without_captions_and_clips_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no clip with a caption; put NAME"):
        check_clip_folder(tmp_path)
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(1600), 16_000)
    (tmp_path / "a.txt").write_text("a jig")
    with pytest.raises(DataError, match=r"1 of 2 have no caption, first of all b\.wav"):
        check_clip_folder(tmp_path)
    (tmp_path / "b.txt").write_text("a reel")
    check_clip_folder(tmp_path)
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"b\.wav: cannot be read"):
        check_clip_folder(tmp_path)


def test_a_model_brings_its_sampling_settings(folder: Path) -> None:
    """Those of generation_config.json, unless the recipe has others."""

    def teacher(**values: object) -> tuple[float, int, float]:
        content = {
            "name": "own",
            "teacher": {"model": str(folder), **values},
            "student": {"kind": "prune_layers", "layers": [0]},
        }
        result = with_sampling_defaults(parse_recipe({**content, "description": ""}, "own")).teacher
        return result.guidance_scale, result.top_k, result.temperature

    assert teacher() == (2.0, 64, 0.7)
    assert teacher(guidance_scale=5, temperature=1) == (5.0, 64, 1.0)
    other = load_recipe("band", (f"teacher.model={folder}", "teacher.temperature=0.5"))
    assert (other.teacher.guidance_scale, other.teacher.top_k) == (3.0, 250), "not those of the recipe's own teacher"
    derived = folder / "derived.yaml"
    derived.write_text(f"extends: band\nteacher: {{model: {folder}, top_k: 9}}\n")
    other = with_sampling_defaults(load_recipe(str(derived)))
    assert (other.teacher.guidance_scale, other.teacher.top_k) == (2.0, 9)
    edit(folder / "generation_config.json", top_k=None, guidance_scale=4)
    assert teacher() == (4.0, 250, 0.7), "MusicGen's own where the model has none"
    edit(folder / "generation_config.json", temperature="warm")
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        teacher()
