"""The shapes of a MusicGen's text encoder and codec, read from its config.json, and what a student's may be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tinymusician.errors import RecipeError
from tinymusician.json_types import JsonObject
from tinymusician.models.config_defaults import ENCODEC, T5
from tinymusician.models.hub import split_revision
from tinymusician.models.shape import RELEASED, read_model_json
from tinymusician.models.tensor_shapes import CodecShape, TextShape


def component_shapes(name: str) -> tuple[TextShape, CodecShape] | None:
    """The shapes of a released, packaged or local model's text encoder and codec; None where they are unknown."""
    if split_revision(name)[0] in RELEASED:
        return TextShape(), CodecShape()
    try:
        config = read_model_json(name, "config.json") or {}
        return text_shape(config["text_encoder"]), codec_shape(config["audio_encoder"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def check_text(
    layers: Sequence[int],
    width: int,
    heads: int,
    feed_forward: int,
    teacher_layers: int,
    teacher_width: int,
    teacher_heads: int,
    teacher_feed_forward: int,
) -> None:
    """Check that a text encoder can be pruned from a teacher's.

    Raises:
        RecipeError: a size exceeds the teacher's, or a layer does not exist.
    """
    sizes = {
        "width": (width, teacher_width),
        "heads": (heads, teacher_heads),
        "feed_forward": (feed_forward, teacher_feed_forward),
    }
    for name, (value, maximum) in sizes.items():
        if value > maximum:
            raise RecipeError(f"text_encoder.{name} = {value}: at most the teacher's {maximum}")
    if len(layers) > teacher_layers:
        raise RecipeError(f"text_encoder.layers: {len(layers)} layers; the teacher has {teacher_layers}")
    for layer in layers:
        if layer >= teacher_layers:
            raise RecipeError(f"text_encoder.layers: layer {layer}; the teacher's are 0 to {teacher_layers - 1}")


def check_text_width(width: int, decoder: int) -> None:
    """Check that the decoder projects its text states: one of their own width does not.

    Raises:
        RecipeError: text states are as wide as the student's decoder.
    """
    if width == decoder:
        raise RecipeError(
            f"text_encoder.width = {width}: is that of the student's decoder, which then has no projection of the text "
            "states; any other is allowed"
        )


SHORTEST = 512
"""Half the window of the spectral losses, in samples."""


def check_piece(seconds: float, frame_rate: float, samples_per_frame: int) -> int:
    """The number of frames of a piece of audio.

    Raises:
        RecipeError: it is too short for a spectrum.
    """
    frames = round(seconds * frame_rate)
    if frames * samples_per_frame <= SHORTEST:
        minimum = (SHORTEST // samples_per_frame + 1) / frame_rate
        raise RecipeError(
            f"codec.seconds = {seconds:g}: at least {minimum:g} s are needed for a spectrum, also of sequences.seconds"
        )
    return frames


def check_codec_size(filters: int, residual_layers: int, teacher_filters: int, teacher_residual_layers: int) -> None:
    """Check that a codec can be pruned from a teacher's.

    Raises:
        RecipeError: a size exceeds the teacher's.
    """
    if filters > teacher_filters:
        raise RecipeError(f"codec.filters = {filters}: at most the teacher's {teacher_filters}")
    if residual_layers > teacher_residual_layers:
        raise RecipeError(f"codec.residual_layers = {residual_layers}: at most the teacher's {teacher_residual_layers}")


def text_shape(config: JsonObject) -> TextShape:
    """The shape of a T5 by its configuration."""
    config = T5 | config
    return TextShape(
        layers=config["num_layers"],
        width=config["d_model"],
        heads=config["num_heads"],
        feed_forward=config["d_ff"],
        head=config["d_kv"],
        vocabulary=config["vocab_size"],
        buckets=config.get("relative_attention_num_buckets", 32),
        gated="gated" in config.get("feed_forward_proj", "relu"),
    )


def codec_shape(config: JsonObject) -> CodecShape:
    """The shape of an EnCodec by its configuration."""
    config = ENCODEC | config
    ratios = tuple(config["upsampling_ratios"])
    frame_rate = math.ceil(config["sampling_rate"] / math.prod(ratios))
    bits = math.ceil(math.log2(config["codebook_size"]))
    return CodecShape(
        filters=config["num_filters"],
        residual_layers=config["num_residual_layers"],
        ratios=ratios,
        latent=config["hidden_size"],
        lstm_layers=config["num_lstm_layers"],
        kernel=config["kernel_size"],
        last_kernel=config["last_kernel_size"],
        residual_kernel=config["residual_kernel_size"],
        compress=config["compress"],
        shortcut=config["use_conv_shortcut"],
        channels=config["audio_channels"],
        codebooks=int(1000 * config["target_bandwidths"][-1] // (frame_rate * bits)),
        codes=config["codebook_size"],
        code_width=config.get("codebook_dim") or config["hidden_size"],
        weight_norm=config["norm_type"] == "weight_norm",
    )
