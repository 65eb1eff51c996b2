"""The audio vectors of a frozen encoder for a set of clips, computed once; and those of clips without music."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tinymusician.models.audio_encoder import PATCH, AudioEncoder
from tinymusician.models.prune_layers import weights_digest
from tinymusician.models.spectral_front_end import RATE
from tinymusician.understand.answer_task import Features
from tinymusician.understand.array_file import ProgressCallback, load_or_compute
from tinymusician.understand.spectra import Spectra

_CLIP_BATCH = 50
_NOISES = 150
_SILENCES = 10


@torch.no_grad()
def load_features(
    folder: Path,
    source: str,
    encoder: AudioEncoder,
    spectra: Spectra,
    on_progress: ProgressCallback = lambda done, total: None,
) -> Features:
    """The vectors of every clip, float16 [clips, T, F], from `folder`; a missing file is computed.

    `source` names the clips; the file's name is made of it and of the encoder's weights.
    """
    device, columns = next(encoder.parameters()).device, -(-spectra.shape[-1] // PATCH)

    def compute(rows: slice) -> npt.NDArray[np.float32]:
        batch = torch.from_numpy(np.asarray(spectra[rows], np.float32)).to(device)
        return np.asarray(encoder.encode(batch).cpu().numpy())

    path = folder / f"features-{source}-{weights_digest(encoder)[:16]}.npy"
    return load_or_compute(path, (len(spectra), columns, encoder.shape.output_width), compute, on_progress)


@torch.no_grad()
def mean_vectors(encoder: AudioEncoder, spectra: Spectra) -> npt.NDArray[np.float32]:
    """The mean vector of every clip, [clips, F], which a linear probe reads; nothing is cached."""
    device, means = next(encoder.parameters()).device, []
    for start in range(0, len(spectra), _CLIP_BATCH):
        batch = torch.from_numpy(np.asarray(spectra[start : start + _CLIP_BATCH], np.float32)).to(device)
        means.append(encoder.encode(batch).mean(1).cpu().numpy())
    return np.concatenate(means)


def no_music_features(encoder: AudioEncoder, samples: int, seed: int) -> Features:
    """The vectors of silence and of noise of many colours and levels, [160, T, F]."""
    return np.concatenate(
        [silence_features(encoder, _SILENCES, samples), noise_features(encoder, _NOISES, samples, seed)]
    )


def silence_features(encoder: AudioEncoder, count: int, samples: int) -> Features:
    """The vectors of silence, [count, T, F]."""
    return np.repeat(_vectors(encoder, np.zeros((1, samples), np.float32)), count, 0)


def noise_features(encoder: AudioEncoder, count: int, samples: int, seed: int) -> Features:
    """The vectors of noise of many colours and levels, [count, T, F]."""
    return _vectors(encoder, noises(count, samples, seed))


@torch.no_grad()
def _vectors(encoder: AudioEncoder, waves_BN: npt.NDArray[np.float32]) -> Features:
    device = next(encoder.parameters()).device
    parts = np.array_split(waves_BN, -(-len(waves_BN) // _CLIP_BATCH))
    vectors = [encoder(torch.from_numpy(part).to(device)).cpu().numpy() for part in parts]
    return np.concatenate(vectors).astype(np.float16)


def noises(count: int, samples: int, seed: int) -> npt.NDArray[np.float32]:
    """Gaussian noise with spectra f^-a, a from 0 (white) to 2 (brown), at -60 to -6 dB, float32 [count, samples]."""
    rng = np.random.default_rng(seed)
    frequencies = np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 20.0)
    tilts, decibels = rng.uniform(0, 1, (count, 1)), rng.uniform(-60, -6, (count, 1))
    spectra = np.fft.rfft(rng.normal(size=(count, samples))) * frequencies**-tilts
    waves = np.fft.irfft(spectra, samples)
    scaled = waves / waves.std(1, keepdims=True) * 10 ** (decibels / 20)
    return np.asarray(scaled.clip(-1, 1), np.float32)
