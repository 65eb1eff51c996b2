"""Exports a MusicGen in PyTorch to the float32 graphs of a bundle, in the fused format."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import GenerationConfig

from tinymusician.errors import ModelError
from tinymusician.models.protocols import HasWeights, Musicgen
from tinymusician.models.shape import RELEASED_SECONDS
from tinymusician.models.tokenizer import MAX_TEXT_TOKENS
from tinymusician.quantize.codec import codec_decoder_graph, codec_encoder_graph, codec_weights, frames_around
from tinymusician.quantize.fused import cross_graph, decoder_graph
from tinymusician.quantize.graph import save
from tinymusician.quantize.text import text_graph
from tinymusician.runtime.bundle_manifest import Architecture

GRAPHS_VERSION = 2
"""Increases when the exported graphs change, so that cached graphs are exported again."""


def export_fused(model: Musicgen, tokenizer: Path, folder: Path, continuation: bool) -> None:
    """Write the float32 graphs of a bundle into `folder`; with `continuation` also the codec's encoder.

    `tokenizer` is the model's tokenizer.json.

    Raises:
        ModelError: the model is stereo, or has layers that cannot be exported.
    """
    config = model.config
    if config.decoder.audio_channels != 1:
        raise ModelError(f"decoder: {config.decoder.audio_channels} channels; only mono models can be exported")
    folder.mkdir(parents=True, exist_ok=True)
    weights = decoder_weights(model)
    save(decoder_graph(config, weights), folder / "decoder.onnx")
    save(cross_graph(config, weights), folder / "cross.onnx")
    save(text_graph(config.text_encoder, _numpy(model.text_encoder)), folder / "text_encoder.onnx")
    codec = codec_weights(model.audio_encoder)
    save(codec_decoder_graph(config.audio_encoder, codec), folder / "codec_decoder.onnx")
    if continuation:
        save(codec_encoder_graph(config.audio_encoder, codec), folder / "codec_encoder.onnx")
    shutil.copyfile(tokenizer, folder / "tokenizer.json")


def architecture_of(model: Musicgen, text_tokens: int = MAX_TEXT_TOKENS) -> Architecture:
    """The dimensions of a MusicGen that the engine needs; `text_tokens` is its tokenizer's `model_max_length`."""
    config = model.config
    codec, positions = config.audio_encoder, config.decoder.max_position_embeddings
    before, after = frames_around(codec)
    return Architecture(
        codebooks=config.decoder.num_codebooks,
        vocabulary=config.decoder.vocab_size,
        layers=config.decoder.num_hidden_layers,
        width=config.decoder.hidden_size,
        sampling_rate=codec.sampling_rate,
        hop=int(np.prod(codec.upsampling_ratios)),
        context_before=before,
        context_after=after,
        positions=positions,
        window=min(_trained_frames(model), positions - config.decoder.num_codebooks + 1),
        text_tokens=text_tokens,
    )


def _trained_frames(model: Musicgen) -> int:
    """The length of the training clips, from generation_config; transformers' default of 20 is not one.

    It is at most that of all released models and of audiocraft's default, 30 seconds, and without one exactly that.
    """
    config = model.generation_config
    longest = round(RELEASED_SECONDS * model.config.audio_encoder.frame_rate)
    length = config.max_new_tokens or config.max_length or 0
    return min(int(length), longest) if length > GenerationConfig().max_length else longest


def decoder_weights(model: Musicgen) -> dict[str, npt.NDArray[np.float32]]:
    """The decoder's weights by name, with the table of positions that transformers does not save."""
    positions = model.decoder.model.decoder.embed_positions.weights
    weights = {f"decoder.{name}": value for name, value in _numpy(model.decoder).items()}
    for part in ("enc_to_dec_proj", "guidance_embedding"):
        if getattr(model, part, None) is not None:
            weights |= {f"{part}.{name}": value for name, value in _numpy(getattr(model, part)).items()}
    return weights | {"decoder.model.decoder.embed_positions.weights": positions.detach().numpy()}


def _numpy(module: HasWeights) -> dict[str, npt.NDArray[np.float32]]:
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}
