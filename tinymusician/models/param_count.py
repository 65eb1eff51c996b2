"""The parameter counts of a MusicGen's text encoder and codec decoder, computed without loading anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinymusician.errors import RecipeError
from tinymusician.json_types import JsonObject
from tinymusician.models.shape import RELEASED, WEIGHTS


@dataclass(frozen=True)
class TextShape:
    """A T5 encoder: `layers` with `heads` of width `head`, its `vocabulary`, and its position `buckets`."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    feed_forward: int = 3072
    head: int = 64
    vocabulary: int = 32128
    buckets: int = 32

    @property
    def parameters(self) -> int:
        """The number of parameters, as transformers counts them."""
        layer_parameters = 4 * self.width * self.heads * self.head + 2 * self.width * self.feed_forward + 2 * self.width
        return self.vocabulary * self.width + self.layers * layer_parameters + self.buckets * self.heads + self.width


@dataclass(frozen=True)
class CodecShape:
    """An EnCodec with `filters` in its first convolution, under weight norm."""

    filters: int = 64
    residual_layers: int = 1
    ratios: tuple[int, ...] = (8, 5, 4, 4)
    latent: int = 128
    lstm_layers: int = 2
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    compress: int = 2
    shortcut: bool = False

    @property
    def decoder_parameters(self) -> int:
        """The number of parameters of the decoder, which a device needs, as transformers counts them."""
        channels = self.filters << len(self.ratios)
        total = self.latent * channels * self.kernel + 2 * channels + self.lstm_layers * 8 * channels * (channels + 1)
        for ratio in self.ratios:
            half = channels // 2
            total += channels * half * 2 * ratio + channels + half
            total += self.residual_layers * self._block(half)
            channels = half
        return total + channels * self.last_kernel + 2

    def _block(self, width: int) -> int:
        """One residual block: two convolutions, and one more if its shortcut is a convolution."""
        hidden = width // self.compress
        block = width * hidden * self.residual_kernel + 2 * hidden + hidden * width + 2 * width
        return block + (width * width + 2 * width if self.shortcut else 0)


def component_shapes(name: str) -> tuple[TextShape, CodecShape] | None:
    """The shapes of a released, packaged or local model's text encoder and codec; None where they are unknown."""
    if name in RELEASED:
        return TextShape(), CodecShape()
    folder = WEIGHTS / name if (WEIGHTS / name).is_dir() else Path(name).expanduser()
    try:
        config = json.loads((folder / "config.json").read_text())
        return _text(config["text_encoder"]), _codec(config["audio_encoder"])
    except (OSError, ValueError, KeyError, TypeError):
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


def _text(config: JsonObject) -> TextShape:
    return TextShape(
        layers=config["num_layers"],
        width=config["d_model"],
        heads=config["num_heads"],
        feed_forward=config["d_ff"],
        head=config["d_kv"],
        vocabulary=config["vocab_size"],
        buckets=config.get("relative_attention_num_buckets", 32),
    )


def _codec(config: JsonObject) -> CodecShape:
    return CodecShape(
        filters=config["num_filters"],
        residual_layers=config["num_residual_layers"],
        ratios=tuple(config["upsampling_ratios"]),
        latent=config["hidden_size"],
        lstm_layers=config["num_lstm_layers"],
        kernel=config["kernel_size"],
        last_kernel=config["last_kernel_size"],
        residual_kernel=config["residual_kernel_size"],
        compress=config["compress"],
        shortcut=config["use_conv_shortcut"],
    )
