"""Confidence intervals: of means and proportions over clips, and of distances between sets of clips.

The unit is a clip, never its windows, which depend on each other. A seed gives the same resamples for all models, so
that differences between models that generated from the same prompts are paired. Fewer than ten clips have no interval.
`python -m benchmarks.intervals` simulates how often the intervals contain the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinymusician.config_model import Number
from tinymusician.errors import DataError

LEVEL = 0.95
MIN_CLIPS = 10
"""The least number of clips for an interval."""
_NO_SPREAD, _MAX_SHARE_WITHOUT_SPREAD = 1e-9, 0.01
_EDGES = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


@dataclass(frozen=True)
class Interval:
    """A metric and its 95 % interval; where there are too few clips for one, the `values` of a mean's clips instead."""

    value: Number
    low: float | None = None
    high: float | None = None
    values: tuple[Number, ...] = ()

    def as_share(self) -> str:
        """A share in three decimals with its interval, if it has one: `0.883 [0.862, 0.903]`."""
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def resampled_clips(clips: int, resamples: int, seed: int) -> npt.NDArray[np.int64]:
    """The clips of every resample, [resamples, clips]."""
    return np.random.default_rng(seed).integers(0, clips, (resamples, clips))


def mean_interval(values: npt.ArrayLike, seed: int = 0, resamples: int = 2000) -> Interval:
    """The mean over clips with its interval, the bootstrap-t (Efron and Tibshirani, 1993, section 12.5).

    It resamples t = (mean* - mean) / se*, and so follows skewness, which the percentile interval misses. Where almost
    all values are equal, many resamples have no spread and no t; then it is Student's interval. Proportions have
    `proportion_interval`.

    Raises:
        DataError: there are no values, or some are not finite.
    """
    array = np.asarray(values, np.float64)
    if len(array) == 0 or not np.isfinite(array).all():
        raise DataError(f"mean of {len(array)} values: {int((~np.isfinite(array)).sum())} are not finite; none can be")
    mean, count = float(array.mean()), len(array)
    if count < MIN_CLIPS:
        return Interval(mean, values=tuple(array.tolist()))
    deviation = float(array.std(ddof=1))
    drawn = array[resampled_clips(count, resamples, seed)]
    errors = drawn.std(axis=1, ddof=1)
    varied = errors > _NO_SPREAD * deviation
    if varied.mean() < 1 - _MAX_SHARE_WITHOUT_SPREAD:
        from scipy.stats import t as student_t

        edges = student_t.ppf(_EDGES, count - 1) / np.sqrt(count)
    else:
        edges = np.quantile((drawn.mean(axis=1)[varied] - mean) / errors[varied], _EDGES)
    low, high = (float(mean - edge * deviation) for edge in edges[::-1])
    return Interval(mean, low, high)


def proportion_interval(outcomes: npt.ArrayLike) -> Interval:
    """The share of true outcomes, one per clip, with its exact interval (Clopper and Pearson, 1934).

    Raises:
        DataError: there are no outcomes.
    """
    array = np.asarray(outcomes, bool)
    if len(array) == 0:
        raise DataError("proportion of 0 clips: at least one is needed")
    successes, count = int(array.sum()), len(array)
    if count < MIN_CLIPS:
        return Interval(successes / count, values=tuple(array.astype(float).tolist()))
    return Interval(successes / count, *_exact_edges(successes, count, _EDGES))


def _exact_edges(successes: int, count: int, edges: Sequence[float]) -> tuple[float, float]:
    """The edges of Clopper's and Pearson's interval of a proportion."""
    from scipy.stats import beta

    low = beta.ppf(edges[0], successes, count - successes + 1) if successes else 0.0
    high = beta.ppf(edges[1], successes + 1, count - successes) if successes < count else 1.0
    return float(low), float(high)


def cluster_interval(
    outcomes: npt.ArrayLike, clusters: Sequence[str], level: float = LEVEL, seed: int = 0, resamples: int = 2000
) -> Interval:
    """The mean of outcomes in [0, 1] that are alike within clusters, with its percentile interval over clusters.

    Whole clusters are drawn with all their outcomes, so the mean is a ratio of sums (Davison and Hinkley, 1997,
    section 3.8). If all outcomes are 0, or all are 1, no resample differs; then it is the exact interval of as many
    outcomes as there are clusters (Clopper and Pearson, 1934). Fewer than ten clusters have no interval.

    Raises:
        DataError: there are no outcomes.
    """
    array = np.asarray(outcomes, np.float64)
    if len(array) == 0:
        raise DataError("mean of 0 outcomes: at least one is needed")
    names, members = np.unique(np.asarray(clusters), return_inverse=True)
    sums, counts = np.bincount(members, array), np.bincount(members)
    if len(names) < MIN_CLIPS:
        return Interval(float(array.mean()))
    edges = [(1 - level) / 2, (1 + level) / 2]
    if (mean := float(array.mean())) in (0.0, 1.0):
        few = edges[0] ** (1 / len(names))  # the probability of as many equal outcomes is then that of the edge
        return Interval(mean, *((few, 1.0) if mean else (0.0, 1 - few)))
    drawn = resampled_clips(len(names), resamples, seed)
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = (float(edge) for edge in np.quantile(means, edges))
    return Interval(mean, low, high)


def centred_interval(value: float, resampled: npt.ArrayLike) -> Interval:
    """The percentile interval of resampled distances of two sets, shifted so that their mean is `value`.

    It covers what other sets of as many clips would have against the same reference: the distance at this number of
    clips, with the bias of that number, not the distance of infinitely many clips. Distances of sets are biased, and a
    resample, which contains clips twice, adds to the bias: unshifted percentiles would lie beside the value.
    """
    array = np.asarray(resampled, np.float64)
    low, high = (float(edge) for edge in value + np.quantile(array - array.mean(), _EDGES))
    return Interval(value, low, high)


def paired_difference(one: npt.ArrayLike, other: npt.ArrayLike, seed: int = 0) -> Interval | None:
    """The mean of `one - other` over the clips for which both are finite; None if there are none."""
    first, second = (np.asarray(values, np.float64) for values in (one, other))
    both = np.isfinite(first) & np.isfinite(second)
    return mean_interval((first - second)[both], seed) if both.any() else None
