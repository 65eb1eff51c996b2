"""Files of models that answer questions: our folders, and the published checkpoints of TinyMU and MATPAC.

A folder has `config.json` (shapes), `model.safetensors` (float16) and `tokenizer.json`. Published checkpoints are
PyTorch files; they are read with `weights_only=True`, so they cannot run code.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tinymusician.errors import ModelError, first_line
from tinymusician.inputs import input_path
from tinymusician.json_types import JsonObject
from tinymusician.models.audio_encoder import AudioEncoder, AudioEncoderShape
from tinymusician.models.audio_lm import AudioLM, AudioLMShape, LanguageModelShape
from tinymusician.models.checkpoint_files import check_keys
from tinymusician.models.shape import local_model_folder
from tinymusician.models.spectral_front_end import FrontEndConfig, Scale

MODEL_TYPE = "tinymusician-audio-lm"
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
_TINYMU = ((r"^module\.", ""), (r"^audio_encoder\.enc\.", "audio_encoder."), (r"^text_decoder\.lm\.", "lm."))
"""TinyMU's names of tensors (xiquan-li/TinyMU, src/models/m2t.py), and what replaces them here."""
_LARGEST_SIZE = 2**20
_COMPUTED = re.compile(r"(^|\.)log_mel\.|rotary_emb\.inv_freq$|^head\.")
"""Tensors of published checkpoints that are computed here, and heads of tasks that are not used."""


def save_audio_lm(folder: Path, model: AudioLM, tokenizer_json: str) -> None:
    """Write a model with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().half().contiguous() for name, value in model.state_dict().items() if not _is_tied(name)
    }
    save_file(weights, folder / WEIGHTS)
    content = {"model_type": MODEL_TYPE, **asdict(model.shape)}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    (folder / TOKENIZER).write_text(tokenizer_json, "utf-8")


def round_weights(module: nn.Module) -> None:
    """Round the saved tensors of a module to float16, in place; computed ones, such as a front end's, stay exact."""
    for value in module.state_dict().values():
        value.copy_(value.half())


def load_audio_lm(folder: Path) -> AudioLM:
    """Read what `save_audio_lm` wrote, in float32 and evaluation mode.

    Raises:
        ModelError: the folder has no such model, or a tensor is missing, unexpected, of another shape or not finite.
    """
    shape = read_shape(folder)
    try:
        weights = load_file(folder / WEIGHTS)
    except Exception as error:  # OSError, SafetensorError
        raise ModelError(f"model {str(folder)!r}: {WEIGHTS} cannot be read ({first_line(error)})") from error
    model = AudioLM(shape)
    load_tensors(model, weights, str(folder))
    return model.eval()


def load_tinymu(checkpoint: Path, shape: AudioLMShape | None = None) -> AudioLM:
    """A published checkpoint of TinyMU.

    Raises:
        ModelError: it cannot be read without running code, or its tensors are others.
    """
    model = AudioLM(shape or AudioLMShape())
    load_tensors(model, _renamed(_load_pickled(checkpoint), _TINYMU), str(checkpoint))
    return model.eval()


def load_matpac(checkpoint: Path, shape: AudioEncoderShape | None = None) -> AudioEncoder:
    """A published checkpoint of MATPAC or MATPAC++.

    Raises:
        ModelError: it cannot be read without running code, or its tensors are others.
    """
    encoder = AudioEncoder(shape or AudioEncoderShape())
    load_tensors(encoder, _load_pickled(checkpoint), str(checkpoint))
    return encoder.eval()


def model_folder(name: str) -> Path:
    """The folder of a packaged model, a local folder or an artifact.

    Raises:
        ModelError: there is none.
    """
    if (folder := local_model_folder(name)) is None:
        raise ModelError(f"model {name!r}: no such folder")
    return folder


def load_encoder(name: str) -> AudioEncoder:
    """The encoder of a model that answers questions, or of a MATPAC checkpoint (.pt).

    Raises:
        ModelError: it does not exist, or cannot be loaded.
    """
    if name.endswith((".pt", ".pth")):
        return load_matpac(input_path(name))
    return load_audio_lm(model_folder(name)).audio_encoder


def read_shape(folder: Path) -> AudioLMShape:
    """The shapes in a folder's config.json.

    Raises:
        ModelError: there is none, or it is of another kind of model.
    """
    try:
        content: JsonObject = json.loads((folder / CONFIG).read_text("utf-8"))
        if content.get("model_type") != MODEL_TYPE:
            raise ModelError(f"model {str(folder)!r}: is of type {content.get('model_type')!r}; {MODEL_TYPE} is needed")
        encoder = dict(content["audio_encoder"])
        scales = {name: Scale(*value) for name, value in encoder.pop("front_end").items() if value is not None}
        encoder_shape = AudioEncoderShape(**encoder, front_end=FrontEndConfig(**scales))
        shape = AudioLMShape(encoder_shape, content["projector_width"], LanguageModelShape(**content["lm"]))
        for part in (shape, shape.audio_encoder, shape.lm):
            _check_numbers(part)
        return shape
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"model {str(folder)!r}: {CONFIG} cannot be read ({first_line(error)})") from error


def _check_numbers(shape: AudioLMShape | AudioEncoderShape | LanguageModelShape) -> None:
    """Check that sizes are positive integers, and widths multiples of heads.

    Raises:
        ValueError: one is not.
    """
    for field in fields(shape):
        value, lowest = getattr(shape, field.name), field.name != "end"
        if isinstance(field.default, int) and not (type(value) is int and lowest <= value <= _LARGEST_SIZE):
            raise ValueError(f"{field.name} {value!r}; an integer from {lowest:d} to {_LARGEST_SIZE} is needed")
        if isinstance(field.default, float) and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise ValueError(f"{field.name} {value!r}; a positive number is needed")
    if not isinstance(shape, AudioLMShape) and shape.width % shape.heads:
        raise ValueError(f"width {shape.width}; a multiple of {shape.heads} heads is needed")
    if isinstance(shape, LanguageModelShape) and shape.heads % shape.key_value_heads:
        raise ValueError(f"heads {shape.heads}; a multiple of {shape.key_value_heads} key_value_heads is needed")


def load_tensors(module: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Load tensors into a module, all of them and no others; `name` is for messages.

    Raises:
        ModelError: a tensor is missing, unexpected, of another shape or not finite.
    """
    given = {key: value for key, value in weights.items() if not _COMPUTED.search(key) and not _is_tied(key)}
    expected = {key: value for key, value in module.state_dict().items() if not _is_tied(key)}
    mismatched = {
        key: (tuple(given[key].shape), tuple(value.shape))
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape
    }
    check_keys(name, len(expected), set(expected) - set(given), set(given) - set(expected), mismatched)
    for key, value in given.items():
        if not torch.isfinite(value).all():
            raise ModelError(f"model {name!r}: weights of {key} are not finite numbers")
    module.load_state_dict({key: value.float() for key, value in given.items()}, strict=False)


def _is_tied(name: str) -> bool:
    """Whether a tensor is another name of the embeddings."""
    return name.endswith("lm_head.weight")


def _renamed(weights: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def _load_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file, also where they are one level down, under `model` or `state_dict`."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ModelError(f"model {str(path)!r}: cannot be read as plain tensors ({first_line(error)})") from error
    keys: tuple[Literal["model", "state_dict"], ...] = ("model", "state_dict")
    for key in keys:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"model {str(path)!r}: holds no dictionary of tensors")
    return content
