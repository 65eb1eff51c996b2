"""The house band's EnCodec, and the closed-form initialization of its training.

Training a randomly initialized EnCodec takes hours. This one starts as a linear codec that already reconstructs audio:
an MDCT, a principal component analysis of the coefficients of one frame, and k-means codebooks. The nonlinear layers
are present from the start, but scaled so that they are nearly linear.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import EncodecConfig, EncodecModel

from tinymusician.models.protocols import Codec, LayerStack

_SMALL = 0.2
"""The scale at which ELU is nearly linear: ELU(x) = x - x²/2 for small negative x."""


def codec_config(codebook_size: int = 512, filters: int = 40, latent: int = 64, lstm_layers: int = 1) -> EncodecConfig:
    """EnCodec at 16 kHz, 50 frames per second, four codebooks, with strides 80 and 4."""
    bandwidth = 4 * 50 * math.log2(codebook_size) / 1000
    return EncodecConfig(
        target_bandwidths=[bandwidth],
        sampling_rate=16_000,
        audio_channels=1,
        normalize=False,
        hidden_size=latent,
        num_filters=filters,
        num_residual_layers=0,
        upsampling_ratios=[4, 80],
        num_lstm_layers=lstm_layers,
        use_causal_conv=False,
        codebook_size=codebook_size,
        codebook_dim=latent,
        use_conv_shortcut=False,
    )


@torch.no_grad()
def start_from_closed_form(codec: Codec, audio_BN: Tensor) -> None:
    """Set encoder and decoder to an MDCT and the principal components of its coefficients on `audio_BN`.

    The encoder's four convolutions become: a copy of the wave beside random filters, the MDCT, the projection of one
    frame's coefficients on their principal components, the first `hidden_size` of them. The decoder is the transpose.
    """
    config = codec.config
    frame, stride = config.upsampling_ratios[0], config.upsampling_ratios[1]
    width, latent = 4 * config.num_filters, config.hidden_size
    basis = mdct_basis(stride)
    components = _principal_components(audio_BN, basis, frame, width)

    wave, transform, project, keep = (layer.conv for layer in _of_type(codec.encoder, "EncodecConv1d"))
    _set(wave, _centred(wave, {0: 1.0}) + 0.3 * _noise(wave) * _except_first(wave), _SMALL)
    _set(transform, _at_channel(transform, basis / _SMALL), _SMALL)
    _set(project, _window(project, components.permute(0, 2, 1)), 1.0)
    _set(keep, _window(keep, torch.eye(width)[:latent, :, None]), 1 / _SMALL)

    widen, play = (layer.conv for layer in _of_type(codec.decoder, "EncodecConv1d"))
    unproject, inverse = (layer.conv for layer in _of_type(codec.decoder, "EncodecConvTranspose1d"))
    _set(widen, _window(widen, torch.eye(width)[:, :latent, None]), _SMALL)
    _set(unproject, _window(unproject, components.permute(0, 2, 1)), 1.0)
    _set(inverse, _at_channel(inverse, basis), 1.0)
    _set(play, _centred(play, {0: 1.0}) + 1e-3 * _noise(play), 1 / _SMALL)
    for lstm in (module for module in codec.modules() if isinstance(module, nn.LSTM)):
        for name, parameter in lstm.named_parameters():
            parameter.mul_(0.1 if "weight" in name else 0.0)


def mdct_basis(coefficients: int) -> Tensor:
    """The sine-windowed MDCT [N, 2N]: orthonormal with 50 % overlap (Princen, Johnson and Bradley, 1987)."""
    n = torch.arange(2 * coefficients) + 0.5
    k = torch.arange(coefficients)[:, None] + 0.5
    window = torch.sin(math.pi / (2 * coefficients) * n)
    cosine = torch.cos(math.pi / coefficients * (n + coefficients / 2) * k)
    return math.sqrt(2 / coefficients) * window * cosine


def _principal_components(audio_BN: Tensor, basis: Tensor, frame: int, count: int) -> Tensor:
    """The `count` strongest directions of one frame's coefficients: [count, frame, coefficients]."""
    size = len(basis)
    padded = F.pad(audio_BN[:, None], (size // 2, size // 2), mode="reflect")
    coefficients = F.conv1d(padded, basis[:, None], stride=size)
    steps = coefficients.shape[-1] // frame
    blocks = coefficients[..., : steps * frame].reshape(len(audio_BN), size, steps, frame)
    rows = blocks.permute(0, 2, 3, 1).reshape(-1, frame * size)
    _, directions = torch.linalg.eigh(rows.T @ rows)
    strongest: Tensor = directions.flip(1)[:, :count].T
    return strongest.reshape(count, frame, size)


def _of_type(part: LayerStack, name: str) -> list[Any]:
    return [layer for layer in part.layers if type(layer).__name__ == name]


def _set(conv: nn.Conv1d, weight: Tensor, scale: float) -> None:
    """Under weight norm, assigning `weight` sets direction and length."""
    assert conv.bias is not None
    setattr(conv, "weight", weight * scale)  # noqa: B010 - a parametrization, not a parameter
    conv.bias.zero_()


def _noise(conv: nn.Conv1d) -> Tensor:
    return torch.randn(conv.weight.shape)


def _except_first(conv: nn.Conv1d) -> Tensor:
    mask = torch.ones(conv.weight.shape)
    mask[0] = 0
    return mask


def _centred(conv: nn.Conv1d, values: dict[int, float]) -> Tensor:
    """A kernel that copies input channel 0 to output channels, each with its factor in `values`."""
    weight = torch.zeros(conv.weight.shape)
    for channel, value in values.items():
        weight[channel, 0, conv.weight.shape[-1] // 2] = value
    return weight


def _window(conv: nn.Conv1d, kernel: Tensor) -> Tensor:
    """`kernel` in the middle of the convolution's support, over low noise that breaks ties."""
    weight = 1e-3 * _noise(conv)
    before = (conv.weight.shape[-1] - kernel.shape[-1]) // 2
    weight[:, :, before : before + kernel.shape[-1]] += kernel
    return weight


def _at_channel(conv: nn.Conv1d, basis: Tensor) -> Tensor:
    """`basis` between channel 0 on the wave's side and all coefficients, over low noise."""
    weight = 1e-3 * _noise(conv)
    weight[:, 0] = basis
    return weight


def new_codec(config: EncodecConfig) -> EncodecModel:
    """An EnCodec with random weights; `start_from_closed_form` initializes them."""
    return EncodecModel(config)
