"""Detects degenerate clips: silence, quiet stretches, clipping, non-finite samples, constant offset, endless loops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from tinymusician.evaluate.clip_embeddings import Floats
from tinymusician.evaluate.results import DegenerateCounts, Fault
from tinymusician.settings import DegenerateThresholds

_SILENT_SECONDS, _SILENT_DB = 0.02, -60.0
_QUIET_SECONDS, _QUIET_DB = 0.05, -45.0
_FULL_SCALE = 0.999
FAULTS: tuple[Fault, ...] = get_args(Fault)


@dataclass(frozen=True)
class ClipHealth:
    """Measurements of one clip: shares that are silent, clipped, looped and quiet, its mean, and the loop's lag."""

    finite: bool
    silent: float
    clipped: float
    offset: float
    looped: float
    lag: int  # frames
    quiet: float


def examine(wave: Floats, rate: int, codes_KT: npt.NDArray[np.integer[Any]] | None = None) -> ClipHealth:
    """Measure one clip: mono samples in [-1, 1], and the codes it was decoded from, if known."""
    looped, lag = loop(codes_KT) if codes_KT is not None else (0.0, 0)
    if not np.isfinite(wave).all():
        return ClipHealth(False, 0.0, 0.0, 0.0, looped, lag, 0.0)
    if len(wave) == 0:
        return ClipHealth(True, 1.0, 0.0, 0.0, looped, lag, 1.0)
    clipped = float(np.mean(np.abs(wave) >= _FULL_SCALE))
    silent, quiet = _silent_share(wave, rate), _quiet_share(wave, rate)
    return ClipHealth(True, silent, clipped, float(abs(wave.mean())), looped, lag, quiet)


def problems(health: ClipHealth, thresholds: DegenerateThresholds) -> tuple[Fault, ...]:
    """The faults of a clip."""
    if not health.finite:
        return ("not finite",)
    measured = (
        health.silent > thresholds.silent,
        health.clipped > thresholds.clipped,
        health.offset > thresholds.offset,
        health.looped > thresholds.looped,
        health.quiet > thresholds.quiet and not health.silent > thresholds.silent,
    )
    return tuple(fault for fault, present in zip(FAULTS[1:], measured, strict=True) if present)


def count_degenerate(health_NF: Floats, thresholds: DegenerateThresholds) -> DegenerateCounts:
    """Count the faults of clips; the rows of `health_NF` are the fields of `ClipHealth`."""
    clips = [ClipHealth(*row) for row in health_NF.tolist()]
    faults = [problems(clip, thresholds) for clip in clips]
    by_fault = {fault: sum(fault in one for one in faults) for fault in FAULTS}
    quiet = float(np.mean([clip.quiet for clip in clips]))
    return DegenerateCounts(clips=sum(bool(one) for one in faults), by_fault=by_fault, quiet=quiet)


def _silent_share(wave: Floats, rate: int) -> float:
    """The share of 20 ms frames below -60 dB of full scale; a clip shorter than a frame is silent."""
    return _share_below(wave, rate, _SILENT_SECONDS, _SILENT_DB)


def _quiet_share(wave: Floats, rate: int) -> float:
    """The share of 50 ms frames below -45 dB of full scale; a clip shorter than a frame is quiet."""
    return _share_below(wave, rate, _QUIET_SECONDS, _QUIET_DB)


def _share_below(wave: Floats, rate: int, seconds: float, decibels: float) -> float:
    """The share of frames whose mean power is below a level."""
    size = round(rate * seconds)
    frames = wave[: len(wave) // size * size].reshape(-1, size)
    if len(frames) == 0:
        return 1.0
    level = 10 * np.log10(np.square(frames.astype(np.float64)).mean(axis=1) + 1e-12)
    return float(np.mean(level < decibels))


def loop(codes_KT: npt.NDArray[np.integer[Any]]) -> tuple[float, int]:
    """The largest share of frames whose codes all equal those a fixed lag before, and that lag in frames.

    Lags of up to a third of the clip count: a single repetition may be a tune's second part.
    """
    frames = codes_KT.shape[1]
    shares = [float((codes_KT[:, lag:] == codes_KT[:, :-lag]).all(axis=0).mean()) for lag in range(1, frames // 3 + 1)]
    if not shares:
        return 0.0, 0
    best = int(np.argmax(shares))
    return shares[best], best + 1
