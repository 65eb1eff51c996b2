"""The audio vectors of a frozen encoder for a set of clips, computed once; and those of clips without music."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tinymusician.models.audio_encoder import AudioEncoder
from tinymusician.models.prune_layers import weights_digest
from tinymusician.models.spectral_front_end import RATE
from tinymusician.understand.answer_task import Features
from tinymusician.understand.spectra import Spectra

_CLIPS_AT_ONCE = 50
_NOISES = 150
_SILENCES = 10


@torch.no_grad()
def load_features(folder: Path, source: str, encoder: AudioEncoder, spectra: Spectra) -> Features:
    """The vectors of every clip, float16 [clips, T, F], from `folder`; a missing file is computed.

    `source` names the clips; the file's name is made of it and of the encoder's weights.
    """
    path = folder / f"features-{source}-{weights_digest(encoder)[:16]}.npy"
    if not path.exists():
        device = next(encoder.parameters()).device
        columns = -(-spectra.shape[-1] // 16)
        draft = path.with_name(f"{path.name}.{os.getpid()}.part")
        features = np.lib.format.open_memmap(
            draft, "w+", np.float16, (len(spectra), columns, encoder.shape.output_width)
        )
        for start in range(0, len(spectra), _CLIPS_AT_ONCE):
            batch = torch.from_numpy(np.asarray(spectra[start : start + _CLIPS_AT_ONCE], np.float32)).to(device)
            features[start : start + _CLIPS_AT_ONCE] = encoder.encode(batch).cpu().numpy().astype(np.float16)
        features.flush()
        os.replace(draft, path)
    return np.asarray(np.load(path, mmap_mode="r"))


@torch.no_grad()
def unhearable_features(encoder: AudioEncoder, samples: int, seed: int) -> Features:
    """The vectors of silence and of noise of many colours and levels, [160, T, F]."""
    device = next(encoder.parameters()).device
    waves = np.concatenate([np.zeros((_SILENCES, samples), np.float32), noises(_NOISES, samples, seed)])
    parts = np.array_split(waves, -(-len(waves) // _CLIPS_AT_ONCE))
    return np.concatenate([encoder(torch.from_numpy(part).to(device)).cpu().numpy() for part in parts]).astype(
        np.float16
    )


def noises(count: int, samples: int, seed: int) -> npt.NDArray[np.float32]:
    """Gaussian noise with spectra f^-a, a from 0 (white) to 2 (brown), at -60 to -6 dB, float32 [count, samples]."""
    rng = np.random.default_rng(seed)
    frequencies = np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 20.0)
    tilts, decibels = rng.uniform(0, 1, (count, 1)), rng.uniform(-60, -6, (count, 1))
    spectra = np.fft.rfft(rng.normal(size=(count, samples))) * frequencies**-tilts
    waves = np.fft.irfft(spectra, samples)
    scaled = waves / waves.std(1, keepdims=True) * 10 ** (decibels / 20)
    return np.asarray(scaled.clip(-1, 1), np.float32)
