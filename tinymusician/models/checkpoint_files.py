"""Checks a MusicGen folder by its files, without loading weights: its kind, tokenizer, and the shape of each tensor."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from tinymusician.errors import ModelError
from tinymusician.json_types import JsonObject
from tinymusician.models.component_shapes import codec_shape, text_shape
from tinymusician.models.hub import cached_file
from tinymusician.models.shape import decoder_shape
from tinymusician.models.tensor_shapes import Tensors, guidance_tensors

ADAPTER, PICKLED, SENTENCEPIECE = "adapter_config.json", "pytorch_model.bin", "spiece.model"
"""Files by which folders are recognized that need a conversion: LoRA, older weights, an older tokenizer."""
TOKENIZER = "tokenizer.json"
_TRAINING_CHECKPOINT = "checkpoint.th"
WEIGHTS_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_KINDS = {"text_encoder": "t5", "audio_encoder": "encodec", "decoder": "musicgen_decoder"}
_COMPUTED = ("decoder.model.decoder.embed_positions.weights",)
"""Tensors of older checkpoints that transformers computes now."""
_SAME = {
    ".weight_g": ".parametrizations.weight.original0",
    ".weight_v": ".parametrizations.weight.original1",
    "text_encoder.encoder.embed_tokens.weight": "text_encoder.shared.weight",
}
"""Other names of the same tensors: weight norm before PyTorch 2, and a tied embedding."""


def model_type(folder: Path) -> str:
    """The kind of a model in transformers' layout, such as `musicgen`.

    Raises:
        ModelError: it has no readable config.json.
    """
    return str(_read_json(folder / "config.json").get("model_type"))


def check_checkpoint(folder: Path, name: str | None = None) -> None:
    """Check that a folder in transformers' layout has a MusicGen that this code can train on and generate with.

    `name` is the name of the model in errors, by default the folder's path.

    Raises:
        ModelError: it is in another layout, has no tokenizer, or `check_tensors` raises it.
    """
    name = name or str(folder)
    check_layout(folder)
    check_tensors(folder, name)
    if not (folder / TOKENIZER).is_file():
        raise ModelError(f"model {name!r}: has no tokenizer; {TOKENIZER} belongs there")


def check_hub_model(name: str) -> None:
    """Check the kind of a hub model, if its config.json is in the cache; nothing is downloaded.

    Raises:
        ModelError: its kind is not supported.
    """
    if (config := cached_file(name, "config.json")) is not None:
        check_kind(name, _read_json(config))


def check_tensors(folder: Path, name: str) -> None:
    """Check that a folder has the weights of a MusicGen of a supported kind.

    Raises:
        ModelError: its kind is not supported, a file of weights is missing or damaged, or its tensors are not those of
            its configuration.
    """
    config = _read_json(folder / "config.json")
    check_kind(name, config)
    try:
        expected = expected_tensors(config)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError(f"model {name!r}: config.json is not a MusicGen's ({error!r})") from error
    actual = _read_headers(folder)
    mismatched = {key: (actual[key], expected[key]) for key in expected.keys() & actual if actual[key] != expected[key]}
    check_keys(name, len(expected), expected.keys() - actual, actual.keys() - expected, mismatched)


def check_kind(name: str, config: JsonObject) -> None:
    """Check that a configuration is that of a mono MusicGen with a T5 and an EnCodec.

    Raises:
        ModelError: it is of another kind.
    """
    kind = config.get("model_type")
    if kind == "musicgen_melody":
        raise ModelError(f"model {name!r}: is conditioned on melodies, which is not supported; use a musicgen")
    if kind != "musicgen":
        raise ModelError(f"model {name!r}: config.json says model_type {kind!r}; allowed is musicgen")
    for part, expected in _KINDS.items():
        actual = (config.get(part) or {}).get("model_type", expected)
        if actual != expected:
            raise ModelError(f"model {name!r}: config.json says {part}.model_type {actual!r}; allowed is {expected}")
    channels = config.get("decoder", {}).get("audio_channels", 1)
    if channels != 1:
        raise ModelError(f"model {name!r}: has {channels} audio channels; only mono models are supported")


def expected_tensors(config: JsonObject) -> Tensors:
    """Names and shapes of the tensors of a MusicGen, by its configuration.

    Raises:
        KeyError: a size is missing.
    """
    decoder = decoder_shape(config)
    parts = {
        "text_encoder": text_shape(config["text_encoder"]).tensors(),
        "audio_encoder": codec_shape(config["audio_encoder"]).tensors(),
        "decoder": decoder.tensors(),
        "enc_to_dec_proj": decoder.projection_tensors(),
        "guidance_embedding": guidance_tensors(decoder.text) if config.get("guidance_range") else {},
    }
    return {f"{part}.{name}": shape for part, tensors in parts.items() for name, shape in tensors.items()}


def check_keys(
    name: str,
    expected: int,
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Mapping[str, tuple[object, object]],
) -> None:
    """Check that a checkpoint has the tensors of its model and no others; `mismatched` are shapes, actual and expected.

    Raises:
        ModelError: it has not; the message has an example of each kind.
    """
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {expected} tensors are missing, such as {min(missing)}")
    if unexpected:
        faults.append(f"{len(unexpected)} tensors are not those of this model, such as {min(unexpected)}")
    for key in sorted(mismatched)[:1]:
        actual, needed = (list(shape) for shape in mismatched[key])  # type: ignore[call-overload]
        faults.append(f"{len(mismatched)} tensors have another shape, such as {key}: {actual}; {needed} is needed")
    if faults:
        raise ModelError(f"model {name!r}: {'; '.join(faults)}")


def check_layout(folder: Path) -> None:
    """Check that a model's folder needs no conversion.

    Raises:
        ModelError: it does; the message says how.
    """
    has_weights = (folder / WEIGHTS_FILE).is_file() or (folder / _INDEX).is_file()
    convertible = {
        ADAPTER: ("has a LoRA adapter alone", has_weights),
        PICKLED: ("has pickled weights alone", has_weights),
        SENTENCEPIECE: ("has its tokenizer as a SentencePiece model alone", (folder / TOKENIZER).is_file()),
    }
    for file, (what, is_complete) in convertible.items():
        if (folder / file).is_file() and not is_complete:
            raise ModelError(f"model {str(folder)!r}: {what}; `tmctl models convert {folder} NEW` converts it")
    if (folder / _TRAINING_CHECKPOINT).is_file() and not has_weights:
        raise ModelError(
            f"model {str(folder)!r}: has a training checkpoint of audiocraft; export it where audiocraft is installed, "
            "with audiocraft.utils.export: export_lm('checkpoint.th', 'state_dict.bin') and "
            "export_pretrained_compression_model('facebook/encodec_32khz', 'compression_state_dict.bin')"
        )


def _read_headers(folder: Path) -> Tensors:
    """Names and shapes of all tensors in a folder's files, under their present names."""
    expected = [WEIGHTS_FILE]
    if (folder / _INDEX).is_file():
        expected = sorted(set(_read_json(folder / _INDEX).get("weight_map", {}).values()))
    if missing := [name for name in expected if not (folder / name).is_file()]:
        raise ModelError(f"model {str(folder)!r}: has no {', '.join(missing)}")
    return {
        _present_name(name): shape
        for file in expected
        for name, shape in _read_header(folder / file).items()
        if name not in _COMPUTED
    }


def _read_header(file: Path) -> Tensors:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"model {str(file.parent)!r}: {file.name} is damaged ({error})") from error


def _present_name(name: str) -> str:
    for old, new in _SAME.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _read_json(file: Path) -> JsonObject:
    try:
        content = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model {str(file.parent)!r}: {file.name} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ModelError(f"model {str(file.parent)!r}: {file.name} is no JSON object")
    return content
