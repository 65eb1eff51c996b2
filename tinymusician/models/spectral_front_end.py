"""The input of an audio encoder: waves at 16 kHz to log spectra, 80 bands every 10 ms.

Channel 0 is the log-mel spectrum of MATPAC++ (arXiv 2508.12709; aurianworld/matpac). Channel 1 is optional: a
constant-Q transform (Brown, 1991, eq. 5) with one band per semitone. A mel window of 25 ms resolves 40 Hz, which is
wider than a semitone below 700 Hz, so keys and melodies are hardly visible in channel 0.

Both are products of frames with fixed kernels, so PyTorch and ONNX compute the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank

Kernel = npt.NDArray[np.float32]

RATE, BANDS = 16_000, 80
HOP, WINDOW, LOWEST_HZ = 160, 400, 50.0
LOWEST_PITCH = 40
PITCH_WINDOWS = (4096, 2048, 1024, 512)
"""Lengths in samples of the pitch channel's kernels: each band has the shortest that holds its window."""
_CYCLES = 34.0
"""Periods of a band's frequency in its window: the main lobe of a Hann window is then two semitones wide."""
FLOOR = float(np.finfo(np.float32).eps)


class Scale(NamedTuple):
    """A channel's mean and standard deviation over a corpus, by which it is normalized."""

    mean: float
    std: float


MATPAC_SCALE = Scale(-7.056, 4.193)


@dataclass(frozen=True)
class FrontEndConfig:
    """The scale of each channel; without `pitch`, there is no second channel."""

    mel: Scale = MATPAC_SCALE
    pitch: Scale | None = None

    @property
    def channels(self) -> int:
        """The number of channels, 1 or 2."""
        return 1 if self.pitch is None else 2


class SpectralFrontEnd(nn.Module):
    """Waves [B, N] in [-1, 1] to normalized log spectra [B, channels, 80, 1 + (N - 400) // 160].

    N must be at least 400, one window of 25 ms.
    """

    spectrum: Tensor
    mel: Tensor

    def __init__(self, config: FrontEndConfig) -> None:
        super().__init__()
        self.config = config
        kernels = {"spectrum": fourier_kernels(), "mel": mel_filters()}
        kernels |= {f"pitch_{len(kernel[0])}": kernel for kernel in pitch_kernels()}
        for name, kernel in kernels.items():
            self.register_buffer(name, torch.from_numpy(kernel), persistent=False)

    @torch.no_grad()
    def forward(self, waves_BN: Tensor) -> Tensor:
        mel = self.mel @ _power(waves_BN, self.spectrum)
        channels = [_normalized(mel, self.config.mel)]
        if self.config.pitch is not None:
            bands = [
                _power(F.pad(waves_BN, pitch_padding(window)), self.get_buffer(f"pitch_{window}"))
                for window in PITCH_WINDOWS
            ]
            channels.append(_normalized(torch.cat(bands, 1), self.config.pitch))
        return torch.stack(channels, 1)


def _power(waves_BN: Tensor, kernels: Tensor) -> Tensor:
    """The squared magnitude of every frame's product with complex kernels [2 bands, window], [B, bands, frames]."""
    products = kernels @ waves_BN.unfold(-1, kernels.shape[1], HOP).transpose(1, 2)
    real, imaginary = products.chunk(2, dim=1)
    return real.square() + imaginary.square()


def _normalized(power: Tensor, scale: Scale) -> Tensor:
    return ((power + FLOOR).log() - scale.mean) / scale.std


def pitch_padding(window: int) -> tuple[int, int]:
    """Zeros before and after a wave, so that the windows of both channels have the same centres."""
    before = (window - WINDOW) // 2
    return before, window - WINDOW - before


def fourier_kernels() -> Kernel:
    """The discrete Fourier transform of a Hann window of 400 samples: 201 cosines and 201 sines, [402, 400]."""
    times, bins = np.arange(WINDOW, dtype=np.float64), np.arange(WINDOW // 2 + 1)[:, None]
    return _complex_kernels(2 * np.pi * bins * times / WINDOW, _hann(times, WINDOW))


def mel_filters() -> Kernel:
    """Triangular filters on Slaney's mel scale, of equal area, [80, 201]."""
    filters = mel_filter_bank(WINDOW // 2 + 1, BANDS, LOWEST_HZ, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
    return np.ascontiguousarray(filters.T, np.float32)


def pitch_kernels() -> list[Kernel]:
    """Hann-windowed complex exponentials at 80 semitones from MIDI note 40 (82 Hz) on.

    Windows are 34 periods long, but between 512 and 4096 samples; each kernel is scaled so that a sine of amplitude 1
    at its frequency has magnitude 1. For each length in `PITCH_WINDOWS` there is [2 bands, length]; bands ascend.
    """
    frequencies = 440 * 2 ** ((LOWEST_PITCH + np.arange(BANDS)[:, None] - 69) / 12)
    lengths = np.clip(_CYCLES * RATE / frequencies, PITCH_WINDOWS[-1], PITCH_WINDOWS[0])
    shortest = np.array([min(window for window in PITCH_WINDOWS if window >= length) for length in lengths[:, 0]])
    groups = [shortest == window for window in PITCH_WINDOWS]
    return [
        _pitch_kernels(frequencies[group], lengths[group], window)
        for group, window in zip(groups, PITCH_WINDOWS, strict=True)
    ]


def _pitch_kernels(frequencies: npt.NDArray[np.float64], lengths: npt.NDArray[np.float64], samples: int) -> Kernel:
    times = np.arange(samples) - samples / 2
    window = np.where(np.abs(times) < lengths / 2, _hann(times + lengths / 2, lengths), 0)
    return _complex_kernels(2 * np.pi * frequencies * times / RATE, 2 * window / window.sum(axis=1, keepdims=True))


def _hann(times: npt.NDArray[np.float64], length: npt.NDArray[np.float64] | int) -> npt.NDArray[np.float64]:
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * times / length), np.float64)


def _complex_kernels(phases: npt.NDArray[np.float64], window: npt.NDArray[np.float64]) -> Kernel:
    """Real and imaginary parts of windowed exponentials, one below the other."""
    return np.concatenate([np.cos(phases) * window, -np.sin(phases) * window]).astype(np.float32)
