"""What `--dry-run` says about models and clips without loading them: one line each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jobs.launch.prepare import with_sampling_defaults
from tinymusician.data.captioned import check_clip_folder
from tinymusician.errors import DataError, ModelError
from tinymusician.models.checkpoint_files import check_checkpoint
from tinymusician.models.shape import WEIGHTS
from tinymusician.recipe import parse_recipe


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
    ],
)
def test_kinds_that_are_not_supported(folder: Path, changes: dict[str, object], message: str) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=message):
        check_checkpoint(folder)


def test_missing_files(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer; one of tokenizer\.json, spiece\.model"):
        check_checkpoint(folder)
    (folder / "spiece.model").touch()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / names[0]).touch()
    with pytest.raises(ModelError, match=f"has no {names[1]}"):
        check_checkpoint(folder)
    (folder / names[1]).touch()
    check_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        check_checkpoint(folder)


def test_clips_without_captions_and_clips_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.wav files"):
        check_clip_folder(tmp_path)
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(160), 16_000)
    (tmp_path / "a.txt").write_text("a jig")
    with pytest.raises(DataError, match=r"1 of 2 have no caption; b\.txt is missing"):
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
    edit(folder / "generation_config.json", top_k=None, guidance_scale=4)
    assert teacher() == (4.0, 250, 0.7), "MusicGen's own where the model has none"
    edit(folder / "generation_config.json", temperature="warm")
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        teacher()
