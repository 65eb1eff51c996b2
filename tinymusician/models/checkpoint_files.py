"""Checks a MusicGen folder by its files, without loading weights."""

from __future__ import annotations

import json
from pathlib import Path

from tinymusician.errors import ModelError
from tinymusician.json_types import JsonObject

_TOKENIZERS = ("tokenizer.json", "spiece.model")
_INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"


def check_checkpoint(folder: Path) -> None:
    """Check that a folder in transformers' layout has a MusicGen that this code can train on and generate with.

    Raises:
        ModelError: its kind is not supported, or its tokenizer or a file of weights is missing.
    """
    config = _read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind == "musicgen_melody":
        raise ModelError(f"model {str(folder)!r}: is conditioned on melodies, which is not supported; use a musicgen")
    if kind != "musicgen":
        raise ModelError(f"model {str(folder)!r}: config.json says model_type {kind!r}; allowed is musicgen")
    channels = config.get("decoder", {}).get("audio_channels", 1)
    if channels != 1:
        raise ModelError(f"model {str(folder)!r}: has {channels} audio channels; only mono models are supported")
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ModelError(f"model {str(folder)!r}: has no tokenizer; one of {', '.join(_TOKENIZERS)} belongs there")
    expected = [_WEIGHTS]
    if (folder / _INDEX).is_file():
        expected = sorted(set(_read_json(folder / _INDEX).get("weight_map", {}).values()))
    if missing := [name for name in expected if not (folder / name).is_file()]:
        raise ModelError(f"model {str(folder)!r}: has no {', '.join(missing)}")


def _read_json(file: Path) -> JsonObject:
    try:
        content: JsonObject = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model {str(file.parent)!r}: {file.name} cannot be read ({error})") from error
    return content
