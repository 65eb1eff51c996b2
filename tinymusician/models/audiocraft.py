"""Converts an audiocraft release of MusicGen (`state_dict.bin`, `compression_state_dict.bin`) to transformers' layout.

audiocraft itself is not needed: the files are read as tensors and text. Supported are mono models with the delay
pattern and text conditioning alone: facebook's small, medium and large, and models that users trained. A release does
not contain its text encoder, which is looked for beside the files under its name (such as `t5-base/`), then on the hub.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from pathlib import Path

import torch
import yaml
from torch import Tensor
from transformers import (
    EncodecConfig,
    EncodecModel,
    GenerationConfig,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
    T5EncoderModel,
)

from tinymusician.errors import ModelError
from tinymusician.json_types import JsonObject
from tinymusician.models.checkpoint_files import check_keys
from tinymusician.models.hub import download
from tinymusician.models.pretrained import check_finite, load_pretrained
from tinymusician.models.protocols import Codec, Model, MusicgenDecoder, TextEncoderModel, Tokenizer
from tinymusician.models.shape import RELEASE, RELEASED_SECONDS
from tinymusician.models.tokenizer import read_tokenizer
from tinymusician.user_folders import user_folder

LANGUAGE_MODEL, CODEC = RELEASE
_NO_ENCODER = r"decoder\.|lm_head\."
"""The tensors of a T5 beside its encoder."""
_POSITIONS = 2048
_RENAMED = (
    ("transformer.", "model.decoder."),
    ("out_norm.", "model.decoder.layer_norm."),
    ("linears.", "lm_heads."),
    ("cross_attention.", "encoder_attn."),
    ("linear1.", "fc1."),
    ("linear2.", "fc2."),
    ("norm_cross.", "encoder_attn_layer_norm."),
    (".norm1.", ".self_attn_layer_norm."),
    (".norm2.", ".final_layer_norm."),
)


def convert_cached(folder: Path) -> Path:
    """The folder of the same model in transformers' layout, converted once and cached.

    Raises:
        ModelError: a file cannot be read, the model is of another kind, or its text encoder is missing.
    """
    digest = hashlib.sha256()
    for name in (LANGUAGE_MODEL, CODEC):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    path = user_folder("cache") / "audiocraft" / digest.hexdigest()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            convert(folder, Path(scratch) / "model")
            try:
                os.rename(Path(scratch) / "model", path)
            except OSError:  # another process of this machine was first
                shutil.rmtree(Path(scratch) / "model")
    return path


def convert(folder: Path, to: Path) -> None:
    """Write a release as a folder in transformers' layout."""
    weights, settings = _read(folder / LANGUAGE_MODEL)
    _check(settings, folder)
    decoder = _decoder(weights, settings["transformer_lm"])
    codec = _codec(folder)
    name = settings["conditioners"]["description"]["t5"]["name"]
    text, tokenizer = _text_encoder(folder, name)
    model = MusicgenForConditionalGeneration(text_encoder=text, audio_encoder=codec, decoder=decoder)
    prefix = "condition_provider.conditioners.description.output_proj."
    projection = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    if hasattr(model, "enc_to_dec_proj"):
        _load(model.enc_to_dec_proj, projection, "projection of the text")
    elif projection:
        raise ModelError(f"audiocraft release {folder}: projects text states that are as wide as its decoder")
    card = settings["transformer_lm"]["card"]
    num_codebooks = settings["transformer_lm"]["n_q"]
    model.generation_config = GenerationConfig(
        pad_token_id=card,
        bos_token_id=card,
        decoder_start_token_id=card,
        do_sample=True,
        guidance_scale=float(settings.get("classifier_free_guidance", {}).get("inference_coef", 3.0)),
        top_k=250,
        max_length=round(RELEASED_SECONDS * codec.config.frame_rate) + num_codebooks - 1,
    )
    model.save_pretrained(to, safe_serialization=True)
    tokenizer.save_pretrained(to)


def _read(path: Path) -> tuple[dict[str, Tensor], JsonObject]:
    """The weights of an exported checkpoint, and the experiment's settings."""
    package = _package(path)
    try:
        settings = yaml.safe_load(package["xp.cfg"])
        weights: dict[str, Tensor] = package["best_state"]
    except (KeyError, AttributeError, yaml.YAMLError) as error:
        raise ModelError(f"{path}: no exported checkpoint of audiocraft (`best_state` and `xp.cfg` as text)") from error
    return {name: value.float() for name, value in weights.items()}, settings


def _package(path: Path) -> JsonObject:
    try:
        package: JsonObject = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises OSError, EOFError, RuntimeError, UnpicklingError and others
        raise ModelError(f"{path}: no exported checkpoint of audiocraft (PyTorch cannot read it)") from error
    return package


def _check(settings: JsonObject, folder: Path) -> None:
    pattern = settings.get("codebooks_pattern", {})
    num_codebooks = settings["transformer_lm"]["n_q"]
    if pattern.get("modeling") != "delay" or list(pattern.get("delay", {}).get("delays", [])) != list(
        range(num_codebooks)
    ):
        raise ModelError(f"audiocraft release {folder}: codebook pattern {pattern}; the delay pattern is needed")
    if settings.get("interleave_stereo_codebooks", {}).get("use"):
        raise ModelError(f"audiocraft release {folder}: plays stereo; only mono models are supported")
    if set(settings.get("conditioners", {})) - {"args"} != {"description"}:
        kinds = ", ".join(sorted(settings.get("conditioners", {})))
        raise ModelError(f"audiocraft release {folder}: conditioners {kinds}; text alone is supported")


def _decoder(weights: dict[str, Tensor], shape: JsonObject) -> MusicgenDecoder:
    """The language model, with its packed projections split."""
    width = shape["dim"]
    tensors: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith("emb."):
            tensors[f"model.decoder.embed_tokens.{name.removeprefix('emb.')}"] = value
        elif name.startswith(("transformer.", "out_norm.", "linears.")):
            target = name
            for old, new in _RENAMED:
                target = target.replace(old, new)
            if target.endswith("in_proj_weight"):
                for letter, part in zip("qkv", torch.split(value, width), strict=True):
                    tensors[target.replace("in_proj_weight", f"{letter}_proj.weight")] = part
            else:
                tensors[target] = value
    config = MusicgenDecoderConfig(
        vocab_size=shape["card"],
        hidden_size=width,
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        ffn_dim=int(width * shape["hidden_scale"]),
        num_codebooks=shape["n_q"],
        activation_function="gelu",
        pad_token_id=shape["card"],
        bos_token_id=shape["card"],
        max_position_embeddings=_POSITIONS,
    )
    decoder: MusicgenDecoder = MusicgenForCausalLM(config)
    _load(decoder, tensors, "language model")
    return decoder


def _codec(folder: Path) -> Codec:
    """The codec: from the release, or the one that it names."""
    path = folder / CODEC
    package = _package(path)
    if "pretrained" in package:
        return _pretrained_codec(folder, str(package["pretrained"]))
    weights, settings = _read(path)
    codec: Codec = EncodecModel(_codec_config(settings))
    expected_keys = set(codec.state_dict())
    _load(codec, {_codec_name(name, expected_keys): value for name, value in weights.items()}, "codec")
    return codec


def _pretrained_codec(folder: Path, name: str) -> Codec:
    """The codec that a release names: from a folder beside it, or by hub id."""
    beside = folder / name.rpartition("/")[2]
    try:
        codec: Codec = load_pretrained(EncodecModel, name, beside if beside.is_dir() else download(name))
    except ModelError as error:
        raise ModelError(f"audiocraft release {folder}: needs its codec at {beside}: {error}") from error
    return codec


def _codec_config(settings: JsonObject) -> EncodecConfig:
    """A codec's configuration from audiocraft's solver settings."""
    shape, quantizer = settings["seanet"], settings["rvq"]
    rate = settings["encodec"]["sample_rate"] if "encodec" in settings else settings["sample_rate"]
    hop = math.prod(shape["ratios"])
    return EncodecConfig(
        target_bandwidths=[rate / hop * quantizer["n_q"] * math.log2(quantizer["bins"]) / 1000],
        sampling_rate=rate,
        audio_channels=shape["channels"],
        normalize=False,
        num_filters=shape["n_filters"],
        hidden_size=shape["dimension"],
        num_residual_layers=shape["n_residual_layers"],
        upsampling_ratios=list(shape["ratios"]),
        norm_type=shape["norm"],
        kernel_size=shape["kernel_size"],
        last_kernel_size=shape["last_kernel_size"],
        residual_kernel_size=shape["residual_kernel_size"],
        dilation_growth_rate=shape["dilation_base"],
        use_causal_conv=shape["causal"],
        pad_mode=shape["pad_mode"],
        compress=shape["compress"],
        num_lstm_layers=shape["lstm"],
        trim_right_ratio=shape["decoder"]["trim_right_ratio"],
        codebook_size=quantizer["bins"],
        codebook_dim=shape["dimension"],
        use_conv_shortcut=not shape["true_skip"],
    )


def _codec_name(name: str, expected_keys: set[str]) -> str:
    """A codec tensor's name in transformers."""
    for old, new in (
        ("encoder.model.", "encoder.layers."),
        ("decoder.model.", "decoder.layers."),
        (".conv.conv.", ".conv."),
        (".convtr.convtr.", ".conv."),
        ("quantizer.vq.layers", "quantizer.layers"),
        ("._codebook.", ".codebook."),
    ):
        name = name.replace(old, new)
    if name in expected_keys:
        return name
    name = name.replace("weight_g", "parametrizations.weight.original0")
    return name.replace("weight_v", "parametrizations.weight.original1")


def _text_encoder(folder: Path, name: str) -> tuple[TextEncoderModel, Tokenizer]:
    """The text encoder by the path or id in the release, or from a folder of that name beside it."""
    beside = folder / Path(name).name
    path = next((path for path in (Path(name), folder / name, beside) if path.is_dir()), None)
    try:
        path = path or download(name)
        return load_pretrained(T5EncoderModel, name, path, _NO_ENCODER), read_tokenizer(name, path)
    except ModelError as error:
        raise ModelError(f"audiocraft release {folder}: needs its text encoder at {beside}: {error}") from error


def _load(module: Model, weights: dict[str, Tensor], part: str) -> None:
    """Load every tensor; sinusoidal positions are computed, not loaded."""
    expected = {name: value.shape for name, value in module.state_dict().items() if "embed_positions" not in name}
    actual = {name: value.shape for name, value in weights.items()}
    mismatched = {
        name: (actual[name], expected[name]) for name in expected.keys() & actual if actual[name] != expected[name]
    }
    check_keys(f"audiocraft {part}", len(expected), expected.keys() - actual, actual.keys() - expected, mismatched)
    module.load_state_dict(weights, strict=False)
    check_finite(f"audiocraft {part}", module)
