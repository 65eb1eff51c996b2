"""Prunes a codec: fewer filters and residual blocks, with the teacher's quantizer.

The codes keep their meaning, so both codecs work with the same language model. A device needs the decoder; the encoder
is pruned alike, since a MusicGen has one configuration for both. Every convolution keeps the output channels with the
largest kernels (Frobenius norm, arXiv 1608.08710), for those inputs that the layer before keeps; a residual block
writes to the channels that it reads.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EncodecModel

from tinymusician.errors import ModelError
from tinymusician.models.component_shapes import check_codec_size
from tinymusician.models.protocols import Codec, Musicgen
from tinymusician.models.prune_layers import build_musicgen
from tinymusician.models.prune_width import largest


@torch.no_grad()
def prune_codec(teacher: Codec, filters: int, residual_layers: int) -> Codec:
    """An EnCodec with `filters` and `residual_layers` per stage, in float32 and evaluation mode.

    Raises:
        RecipeError: the teacher has fewer.
        ModelError: it has another normalization than by weight.
    """
    check_codec_size(filters, residual_layers, teacher.config.num_filters, teacher.config.num_residual_layers)
    if teacher.config.norm_type != "weight_norm":
        raise ModelError(f"codec: the teacher's norm_type is {teacher.config.norm_type!r}; weight_norm is supported")
    shape = copy.deepcopy(teacher.config)
    shape.num_filters, shape.num_residual_layers = filters, residual_layers
    student: Codec = EncodecModel(shape)
    student.quantizer.load_state_dict(teacher.quantizer.state_dict())
    for part in ("encoder", "decoder"):
        _cut(getattr(teacher, part).layers, getattr(student, part).layers, residual_layers)
    return student.eval()


def with_reconstructions(model: Musicgen, codec: Codec) -> Musicgen:
    """A MusicGen with another codec."""
    shape = copy.deepcopy(model.config)
    shape.audio_encoder = copy.deepcopy(codec.config)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("audio_encoder.")}
    weights |= {f"audio_encoder.{name}": value for name, value in codec.state_dict().items()}
    return build_musicgen(shape, weights, model)


def _cut(old: Any, new: Any, residual_layers: int) -> None:
    """Initialize the new layers from the corresponding old ones."""
    retained, blocks, targets = None, 0, iter(new)
    for layer in old:
        kind = type(layer).__name__
        blocks = blocks + 1 if kind == "EncodecResnetBlock" else 0
        if blocks > residual_layers:
            continue
        target = next(targets)
        if kind == "EncodecResnetBlock":
            _cut_block(layer, target, retained)
        elif kind == "EncodecLSTM":
            _cut_lstm(layer.lstm, target.lstm, retained)
        elif kind != "ELU":
            retained = _cut_convolution(layer.conv, target.conv, retained)


def _cut_convolution(old: Any, new: Any, retained: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Initialize a convolution that reads the channels `retained` (None: all); returns its output channels."""
    transposed = isinstance(old, nn.ConvTranspose1d)
    weight = old.weight.transpose(0, 1) if transposed else old.weight  # [out, in, kernel]
    weight = weight if retained is None else weight[:, retained]
    if out is None:
        out = largest(weight.flatten(1).norm(dim=1), new.out_channels)
    new.weight = (weight[out].transpose(0, 1) if transposed else weight[out]).clone()
    new.bias.copy_(old.bias[out])
    return out


def _cut_block(old: Any, new: Any, retained: Tensor | None) -> None:
    channels = retained
    for layer, target in zip(old.block, new.block, strict=True):
        if layer is old.block[-1]:
            _cut_convolution(layer.conv, target.conv, channels, retained)
        elif hasattr(layer, "conv"):
            channels = _cut_convolution(layer.conv, target.conv, channels)
    if hasattr(old.shortcut, "conv"):
        _cut_convolution(old.shortcut.conv, new.shortcut.conv, retained, retained)


def _cut_lstm(old: Any, new: Any, retained: Tensor | None) -> None:
    """All four gates keep the channels that the LSTM reads, since it adds its output to its input."""
    assert retained is not None, "a convolution comes first"
    gates = torch.cat([retained + gate * old.hidden_size for gate in range(4)])
    for name, value in old.named_parameters():
        cut = value[gates][:, retained] if name.startswith("weight") else value[gates]
        getattr(new, name).copy_(cut)
