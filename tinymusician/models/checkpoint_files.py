"""Checks a MusicGen folder by its files, without loading weights: its kind, tokenizer, and the shape of each tensor."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tinymusician.errors import ModelError, contain_panics, first_line
from tinymusician.inputs import scheme_of
from tinymusician.json_types import JsonObject
from tinymusician.models.component_shapes import codec_shape, text_shape
from tinymusician.models.hub import cached_file
from tinymusician.models.shape import decoder_shape, is_packaged, is_release, local_model_folder, read_model_json
from tinymusician.models.tensor_shapes import Tensors, guidance_tensors

ADAPTER, PICKLED, SENTENCEPIECE = "adapter_config.json", "pytorch_model.bin", "spiece.model"
"""Files by which folders are recognized that need a conversion: LoRA, older weights, an older tokenizer."""
if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
_TRAINING_CHECKPOINT = "checkpoint.th"
WEIGHTS_FILE, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED_INDEX = f"{PICKLED}.index.json"
_DTYPES = ("F16", "BF16", "F32", "F64")
_INTEGER_NAMES = (".inited", ".cluster_size", "position_ids", "num_batches_tracked")
"""Buffers that may be of another type."""
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
    return str(read_json(folder / "config.json", str(folder)).get("model_type"))


def check_checkpoint(folder: Path, name: str | None = None) -> None:
    """Check that a folder in transformers' layout has a MusicGen that this code can train on and generate with.

    `name` is the name of the model in errors, by default the folder's path.

    Raises:
        ModelError: it is in another layout, has no tokenizer, or `check_tensors` raises it.
    """
    name = name or str(folder)
    check_layout(folder, name)
    check_tensors(folder, name)
    if not (folder / TOKENIZER).is_file():
        raise ModelError(f"model {name!r}: has no tokenizer; {TOKENIZER} belongs there")


def check_model(name: str) -> None:
    """`check_checkpoint` of a local model, or of a hub model as far as it is in the cache.

    Nothing is downloaded, and no weights are loaded. Of a model in a store, config.json is checked. An audiocraft
    release is checked when it is converted; packaged models are complete.

    Raises:
        ModelError: it cannot be used, or does not exist.
    """
    if scheme_of(name):
        _check_config(name)
        return
    folder = local_model_folder(name)
    if folder is not None:
        if not is_packaged(name) and not is_release(folder):
            check_checkpoint(folder, name)
    elif "/" in name and (config := cached_file(name, "config.json")) is not None:
        if has_weights(config.parent):
            check_checkpoint(config.parent, name)
        else:
            check_kind(name, read_json(config, name))


def _check_config(name: str) -> None:
    """Check the configuration of a model in a store; one that only the nodes of a cluster have is checked there."""
    try:
        config = read_model_json(name, "config.json")
    except (OSError, ValueError) as error:
        raise ModelError(f"model {name!r}: config.json cannot be read ({error})") from error
    if config is not None:
        check_kind(name, config)


def check_tensors(folder: Path, name: str) -> None:
    """Check that a folder has the weights of a MusicGen of a supported kind.

    Raises:
        ModelError: its kind is not supported, a file of weights is missing or damaged, or its tensors are not those of
            its configuration.
    """
    config = read_json(folder / "config.json", name)
    check_kind(name, config)
    try:
        expected = expected_tensors(config)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ModelError(f"model {name!r}: config.json is not a MusicGen's ({error!r})") from error
    actual = _read_headers(folder, name)
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
        section = config.get(part)
        if not isinstance(section, dict):
            raise ModelError(f"model {name!r}: config.json has no section {part}")
        actual = section.get("model_type", expected)
        if actual != expected:
            raise ModelError(f"model {name!r}: config.json says {part}.model_type {actual!r}; allowed is {expected}")
    channels = {config[part].get("audio_channels", 1) for part in ("decoder", "audio_encoder")} - {1}
    if channels:
        raise ModelError(f"model {name!r}: has {channels.pop()} audio channels; only mono models are supported")


def expected_tensors(config: JsonObject) -> Tensors:
    """Names and shapes of the tensors of a MusicGen, by its configuration.

    Raises:
        KeyError, TypeError, ValueError: a size is missing or does not fit the others.
    """
    decoder, codec = decoder_shape(config), codec_shape(config["audio_encoder"])
    if (codec.codebooks, codec.codes) < (decoder.codebooks, decoder.vocabulary):
        raise ValueError(
            f"the decoder has {decoder.codebooks} codebooks of {decoder.vocabulary}, and the codec {codec.codebooks} "
            f"of {codec.codes}"
        )
    parts = {
        "text_encoder": text_shape(config["text_encoder"]).tensors(),
        "audio_encoder": codec.tensors(),
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


def has_weights(folder: Path) -> bool:
    """Whether a folder has safetensors, in one file or several."""
    return (folder / WEIGHTS_FILE).is_file() or (folder / WEIGHTS_INDEX).is_file()


def check_layout(folder: Path, name: str) -> None:
    """Check that a model's folder needs no conversion.

    Raises:
        ModelError: it does; the message says how.
    """
    is_safe = has_weights(folder)
    convertible = {
        ADAPTER: ("has a LoRA adapter alone", is_safe),
        PICKLED: ("has pickled weights alone", is_safe),
        PICKLED_INDEX: ("has pickled weights alone", is_safe),
        SENTENCEPIECE: ("has its tokenizer as a SentencePiece model alone", (folder / TOKENIZER).is_file()),
    }
    for file, (what, is_complete) in convertible.items():
        if (folder / file).is_file() and not is_complete:
            raise ModelError(
                f"model {name!r}: {what}; `tmctl models convert {shlex.quote(str(folder))} NEW` converts it"
            )
    if (folder / _TRAINING_CHECKPOINT).is_file() and not is_safe:
        raise ModelError(
            f"model {name!r}: has a training checkpoint of audiocraft; export it where audiocraft is installed, "
            "with audiocraft.utils.export: export_lm('checkpoint.th', 'state_dict.bin') and "
            "export_pretrained_compression_model('facebook/encodec_32khz', 'compression_state_dict.bin')"
        )


def files_of_index(index: Path, name: str) -> list[str]:
    """The files of weights that an index of transformers names.

    Raises:
        ModelError: it is no such index.
    """
    files = read_json(index, name).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ModelError(f"model {name!r}: {index.name} has no weight_map with names of files")
    return sorted(set(files.values()))


def _read_headers(folder: Path, name: str) -> Tensors:
    """Names and shapes of all tensors in a folder's files, under their present names; one file before several."""
    files = [WEIGHTS_FILE]
    if not (folder / WEIGHTS_FILE).is_file() and (folder / WEIGHTS_INDEX).is_file():
        files = files_of_index(folder / WEIGHTS_INDEX, name)
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise ModelError(f"model {name!r}: has no {', '.join(missing)}")
    return {
        _present_name(key): shape
        for file in files
        for key, shape in _read_header(folder / file, name).items()
        if key not in _COMPUTED
    }


def _read_header(file: Path, name: str) -> Tensors:
    from safetensors import SafetensorError, safe_open

    try:
        file.open("rb").close()  # safetensors calls a file without permission absent
    except OSError as error:
        raise ModelError(f"model {name!r}: {file.name} cannot be read ({error.strerror})") from error
    try:
        with safe_open(file, "np") as tensors:
            slices = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118
            types = {key: part.get_dtype() for key, part in slices.items()}
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"model {name!r}: {file.name} is damaged ({error})") from error
    if other := sorted(key for key, kind in types.items() if kind not in _DTYPES and not key.endswith(_INTEGER_NAMES)):
        raise ModelError(
            f"model {name!r}: {len(other)} tensors are not {', '.join(_DTYPES)}, such as {other[0]}: {types[other[0]]}"
        )
    return shapes


def _present_name(name: str) -> str:
    for old, new in _SAME.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def read_tokenizer(folder: Path, name: str) -> Tokenizer:
    """The tokenizer.json in a model's folder; `name` is for messages.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    from tokenizers import Tokenizer

    try:
        with contain_panics():
            return Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # the library raises no narrower one
        raise ModelError(f"model {name!r}: {TOKENIZER} cannot be read ({first_line(error)})") from error


def read_json(file: Path, name: str) -> JsonObject:
    """The JSON object in a file of a model.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        content = json.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise ModelError(f"model {name!r}: {file.name} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ModelError(f"model {name!r}: {file.name} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ModelError(f"model {name!r}: {file.name} is no JSON object")
    return content
