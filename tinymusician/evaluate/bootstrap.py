"""Confidence intervals by the bootstrap: clips are resampled with replacement, and metrics computed on the resamples.

The unit is a clip, never its windows, which depend on each other. A seed gives the same resamples for all models, so
that differences between models that generated from the same prompts are paired.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinymusician.config_model import Number

LEVEL = 0.95
_EDGES = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


@dataclass(frozen=True)
class Interval:
    """A metric and its 95 % interval; without `low` and `high` where there are too few clips for one."""

    value: Number
    low: float | None = None
    high: float | None = None


def resampled_clips(clips: int, resamples: int, seed: int) -> npt.NDArray[np.int64]:
    """The clips of every resample, [resamples, clips]."""
    return np.random.default_rng(seed).integers(0, clips, (resamples, clips))


def mean_interval(values: npt.ArrayLike, seed: int = 0, resamples: int = 2000) -> Interval:
    """The mean over clips with its percentile interval (Efron and Tibshirani, 1993, section 13.3)."""
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return Interval(float(array.mean()))
    means = array[resampled_clips(len(array), resamples, seed)].mean(axis=1)
    low, high = (float(edge) for edge in np.quantile(means, _EDGES))
    return Interval(float(array.mean()), low, high)


def centred_interval(value: float, resampled: npt.ArrayLike) -> Interval:
    """The percentile interval of resampled metrics, shifted so that their mean is `value`.

    Distances of sets are biased, and a resample, which contains clips twice, adds to the bias: unshifted percentiles
    would lie beside the value.
    """
    array = np.asarray(resampled, np.float64)
    low, high = (float(edge) for edge in value + np.quantile(array - array.mean(), _EDGES))
    return Interval(value, low, high)


def paired_difference(one: npt.ArrayLike, other: npt.ArrayLike, seed: int = 0) -> Interval | None:
    """The mean of `one - other` over the clips for which both are finite; None if there are none."""
    first, second = (np.asarray(values, np.float64) for values in (one, other))
    both = np.isfinite(first) & np.isfinite(second)
    return mean_interval((first - second)[both], seed) if both.any() else None
