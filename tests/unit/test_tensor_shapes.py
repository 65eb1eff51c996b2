"""The computed names and shapes of tensors are those that transformers builds."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from transformers import (
    EncodecConfig,
    EncodecModel,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    T5Config,
    T5EncoderModel,
)

from tinymusician.json_types import JsonObject
from tinymusician.models.component_shapes import codec_shape, text_shape
from tinymusician.models.config_defaults import DECODER, ENCODEC, T5
from tinymusician.models.tensor_shapes import DecoderShape, Tensors


def built(kind: type, config: object) -> Tensors:
    """The tensors that transformers would save."""
    with torch.device("meta"):
        model = kind(config)
    tied = {"encoder.embed_tokens.weight"}
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_text_encoders(feed_forward: str) -> None:
    config = T5Config(
        vocab_size=7, d_model=12, d_kv=5, d_ff=9, num_layers=3, num_heads=2, feed_forward_proj=feed_forward
    )
    assert text_shape(config.to_dict()).tensors() == built(T5EncoderModel, config)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_residual_layers": 2, "use_conv_shortcut": False, "compress": 4},
        {"num_residual_layers": 0, "num_lstm_layers": 1, "upsampling_ratios": [4, 80], "codebook_dim": 16},
        {"norm_type": "time_group_norm", "audio_channels": 2, "last_kernel_size": 5, "target_bandwidths": [2.2]},
    ],
)
def test_codecs(changes: Mapping[str, object]) -> None:
    config = EncodecConfig(num_filters=8, hidden_size=16, codebook_size=64, **changes)
    assert codec_shape(config.to_dict()).tensors() == built(EncodecModel, config)


def test_decoders() -> None:
    config = MusicgenDecoderConfig(
        vocab_size=16, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4, num_codebooks=2
    )
    shape = DecoderShape(3, 32, 48, codebooks=2, vocabulary=16, heads=4)
    assert shape.tensors() == built(MusicgenForCausalLM, config)


@pytest.mark.parametrize(
    ("defaults", "kind"), [(T5, T5Config), (ENCODEC, EncodecConfig), (DECODER, MusicgenDecoderConfig)]
)
def test_values_that_a_config_omits(defaults: JsonObject, kind: type) -> None:
    config = kind().to_dict()
    assert {name: config[name] for name in defaults} == defaults
