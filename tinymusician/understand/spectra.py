"""Normalized spectra of a set of clips in one memory-mapped file, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tinymusician.models.spectral_front_end import BANDS, HOP, WINDOW, FrontEndConfig, Scale, SpectralFrontEnd
from tinymusician.understand.array_file import ProgressCallback, load_or_compute

Spectra = npt.NDArray[np.float16]
Waves = Callable[[slice], npt.NDArray[np.float32]]
"""Reads clips as float32 in [-1, 1], [n, N]."""


def load_spectra(
    folder: Path,
    source: str,
    waves: Waves,
    count: int,
    samples: int,
    config: FrontEndConfig,
    on_progress: ProgressCallback = lambda done, total: None,
) -> Spectra:
    """The spectra of `count` clips of `samples` samples, float16 [count, channels, 80, frames], from `folder`.

    `source` names the clips' content; the file's name is made of it and of the front end. A missing file is computed.
    """
    digest = hashlib.sha256(repr((source, count, samples, config)).encode()).hexdigest()[:16]
    shape = (count, config.channels, BANDS, 1 + (samples - WINDOW) // HOP)

    front_end = SpectralFrontEnd(config)

    def compute(rows: slice) -> npt.NDArray[np.float32]:
        return np.asarray(front_end(torch.from_numpy(waves(rows))).numpy())

    return load_or_compute(folder / f"spectra-{digest}.npy", shape, compute, on_progress)


def measure_scales(waves_BN: npt.NDArray[np.float32]) -> FrontEndConfig:
    """A front end with both channels, normalized by mean and standard deviation over some clips."""
    raw = SpectralFrontEnd(FrontEndConfig(Scale(0, 1), Scale(0, 1)))(torch.from_numpy(waves_BN))
    means, stds = raw.mean((0, 2, 3)).tolist(), raw.std((0, 2, 3)).tolist()
    mel, pitch = (Scale(round(mean, 3), round(std, 3)) for mean, std in zip(means, stds, strict=True))
    return FrontEndConfig(mel, pitch)
