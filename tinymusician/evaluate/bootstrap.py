"""Intervals by the bootstrap: clips are drawn anew with replacement, and figures are made of what was drawn.

Clips are the unit that is drawn, never their windows, which depend on each other. All draws of a seed are the same for
all models, so that differences between models that played the same prompts are paired.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
_EDGES = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


class Interval(NamedTuple):
    """A figure and its 95 % interval; without `low` and `high` where there is too little to tell."""

    value: float
    low: float | None = None
    high: float | None = None

    def facts(self) -> dict[str, float | None]:
        """As JSON."""
        return self._asdict()


def resampled_clips(clips: int, resamples: int, seed: int) -> npt.NDArray[np.int64]:
    """The clips of every resample, [resamples, clips]."""
    return np.random.default_rng(seed).integers(0, clips, (resamples, clips))


def mean_interval(values: npt.ArrayLike, seed: int = 0, resamples: int = 2000) -> Interval:
    """The mean over clips with its percentile interval (Efron and Tibshirani, 1993, section 13.3)."""
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return Interval(float(array.mean()))
    means = array[resampled_clips(len(array), resamples, seed)].mean(axis=1)
    return Interval(float(array.mean()), *(float(edge) for edge in np.quantile(means, _EDGES)))


def centred_interval(value: float, resampled: npt.ArrayLike) -> Interval:
    """What other clips of the same number would have given: the resampled figures, moved so that their mean is `value`.

    Distances of sets are biased, and a resample, which holds clips twice, adds to the bias: percentiles as they are
    would lie beside the figure.
    """
    array = np.asarray(resampled, np.float64)
    return Interval(value, *(float(edge) for edge in value + np.quantile(array - array.mean(), _EDGES)))


def difference(one: npt.ArrayLike, other: npt.ArrayLike, seed: int = 0) -> Interval:
    """The mean paired difference, `one` less `other`, of the same clips."""
    first, second = (np.asarray(values, np.float64) for values in (one, other))
    return mean_interval(first - second, seed)


def as_json(figure: Any) -> Any:
    """Intervals as JSON, within whatever holds them; what is no finite number becomes null."""
    if isinstance(figure, Interval):
        return {name: as_json(value) for name, value in figure.facts().items()}
    if isinstance(figure, dict):
        return {name: as_json(value) for name, value in figure.items()}
    if isinstance(figure, list | tuple):
        return [as_json(value) for value in figure]
    if isinstance(figure, float | np.floating):
        return float(figure) if np.isfinite(figure) else None
    return figure
