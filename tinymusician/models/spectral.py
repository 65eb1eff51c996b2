"""Spectral losses and metrics: mel filters, multi-resolution spectral distance, SI-SDR."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

RESOLUTIONS = ((2048, 80), (1024, 64), (256, 24))
"""Window length in samples and number of mel bands of each resolution."""


@cache
def mel_filters(sample_rate: int, window: int, bands: int) -> Tensor:
    """Triangular filters [bands, window // 2 + 1] on the mel scale 2595·log10(1 + f / 700), from 30 Hz up."""

    def to_mel(hertz: Tensor) -> Tensor:
        return 2595 * torch.log10(1 + hertz / 700)

    lowest, highest = to_mel(torch.tensor([30.0, sample_rate / 2]))
    edges = torch.linspace(float(lowest), float(highest), bands + 2)
    hertz = 700 * (10 ** (edges / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, window // 2 + 1)[None]
    rise = (bins - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    fall = (hertz[2:, None] - bins) / (hertz[2:] - hertz[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp(min=0)


def magnitude(audio_BN: Tensor, window: int, hop: int) -> Tensor:
    """The magnitude of the short-time Fourier transform, [B, window // 2 + 1, frames]."""
    spectrum = torch.stft(
        audio_BN, window, hop, window=torch.hann_window(window, device=audio_BN.device), return_complex=True
    )
    return (spectrum.real.square() + spectrum.imag.square() + 1e-8).sqrt()


def log_mel(audio_BN: Tensor, sample_rate: int, window: int, bands: int, hop: int) -> Tensor:
    """Natural logarithm of the mel spectrum, floored at 1e-3, [B, bands, frames]."""
    filters = mel_filters(sample_rate, window, bands).to(audio_BN.device)
    return torch.log(filters @ magnitude(audio_BN, window, hop) + 1e-3)


def spectral_distance(made_BN: Tensor, true_BN: Tensor, sample_rate: int) -> Tensor:
    """Mean over resolutions of log-mel L1, half log-magnitude L1 and half spectral convergence.

    Source: the multi-resolution STFT loss of Parallel WaveGAN (arXiv 1910.11480), with mel bands as in EnCodec.
    Resolutions with a window of more than twice the wave's length are left out.
    """
    fitting = [(window, bands) for window, bands in RESOLUTIONS if window // 2 < made_BN.shape[-1]]
    if not fitting:
        raise ValueError(f"waves of {made_BN.shape[-1]} samples: too short for any spectrum")
    total = made_BN.new_zeros(())
    for window, bands in fitting:
        made, true = magnitude(made_BN, window, window // 4), magnitude(true_BN, window, window // 4)
        filters = mel_filters(sample_rate, window, bands).to(made.device)
        mel = (torch.log(filters @ made + 1e-3) - torch.log(filters @ true + 1e-3)).abs().mean()
        fine = (torch.log(made + 1e-2) - torch.log(true + 1e-2)).abs().mean()
        converge = (made - true).flatten(1).norm(dim=1) / (true.flatten(1).norm(dim=1) + 1e-3)
        total = total + mel + 0.5 * fine + 0.5 * converge.mean()
    return total / len(fitting)


def si_sdr(made_BN: Tensor, true_BN: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, [B] (Le Roux et al., arXiv 1811.02508, eq. 3)."""
    made, true = (x - x.mean(-1, keepdim=True) for x in (made_BN, true_BN))
    scale = (made * true).sum(-1, keepdim=True) / true.square().sum(-1, keepdim=True).clamp(min=1e-8)
    target = scale * true
    noise = (made - target).square().sum(-1).clamp(min=1e-9)
    return 10 * torch.log10(target.square().sum(-1).clamp(min=1e-9) / noise)
