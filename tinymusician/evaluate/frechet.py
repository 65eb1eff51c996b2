"""The Fréchet audio distance: the distance of two sets of clips as Gaussians in an embedding's space.

    FAD = |μ - ν|² + tr(Σ + Τ - 2 (Σ Τ)^½)

Source: Kilgour et al., arXiv 1812.08466, eq. 1. Covariances are sample covariances (divided by M - 1). FAD of finite
sets is biased upwards, for N vectors of a standard normal in D dimensions against the truth by about D/N + D(D+1)/(4N).
FAD∞ extrapolates to infinitely many clips (Gui et al., arXiv 2311.01616, section 3.2), with sets drawn *without*
replacement: with replacement, they converge on the biased value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinymusician.errors import DataError
from tinymusician.evaluate.bootstrap import MIN_CLIPS, Interval, centred_interval, resampled_clips
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings, Floats

_SIZES, _DRAWS = 8, 4
_SMALLEST_SHARE = 0.5


@dataclass(frozen=True)
class Gaussian:
    """`mean` [D] and `covariance` [D, D]."""

    mean: Floats
    covariance: Floats

    @classmethod
    def of(cls, values: Floats) -> Gaussian:
        """The moments of vectors [M, D]; a single one has no covariance."""
        centred = values - values.mean(axis=0)
        return cls(values.mean(axis=0), centred.T @ centred / max(len(values) - 1, 1))


@dataclass(frozen=True)
class FadInfinity:
    """The line through FAD over 1/N: its `value` at 0, and its `points` (clips, FAD)."""

    value: float
    slope: float
    points: tuple[tuple[int, float], ...]


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """The squared Fréchet (2-Wasserstein) distance of two Gaussians.

    (Σ Τ)^½ has the trace of (Σ^½ Τ Σ^½)^½, which is symmetric: its eigenvalues are real, and those that are negative by
    rounding are 0. This needs no general matrix square root, and no offset on the diagonals.
    """
    values, axes = np.linalg.eigh(one.covariance)
    root = axes * np.sqrt(np.maximum(values, 0))
    products = np.linalg.eigvalsh(root.T @ other.covariance @ root)
    shared = np.sqrt(np.maximum(products, 0)).sum()
    apart = np.square(one.mean - other.mean).sum()
    return max(0.0, float(apart + np.trace(one.covariance) + np.trace(other.covariance) - 2 * shared))


def fad(clips: ClipEmbeddings, reference: ClipEmbeddings) -> float:
    """FAD of two sets.

    Raises:
        DataError: the dimensions differ, or a set has too few vectors for a covariance.
    """
    _check(clips, reference)
    return frechet_distance(Gaussian.of(clips.values), Gaussian.of(reference.values))


def fad_interval(clips: ClipEmbeddings, reference: ClipEmbeddings, seed: int = 0, resamples: int = 200) -> Interval:
    """FAD, with the interval for other sets of as many clips against this reference."""
    value = fad(clips, reference)
    if clips.clips < MIN_CLIPS:
        return Interval(value)
    return centred_interval(value, _resampled_fad(clips, reference, seed, resamples))


def _resampled_fad(
    clips: ClipEmbeddings, reference: ClipEmbeddings, seed: int, resamples: int
) -> npt.NDArray[np.float64]:
    """FAD of every resample of the clips."""
    fixed = Gaussian.of(reference.values)
    draws = resampled_clips(clips.clips, resamples, seed)
    return np.array([frechet_distance(Gaussian.of(clips.select(draw).values), fixed) for draw in draws])


def fad_infinity(clips: ClipEmbeddings, reference: ClipEmbeddings, seed: int = 0, draws: int = _DRAWS) -> FadInfinity:
    """FAD extrapolated to infinitely many clips on both sides.

    Both sets are subsampled to the same share, from a half to all of their clips, so the bias of both falls together;
    Gui et al. keep the whole reference, and with it its share of the bias.

    Raises:
        DataError: half of the clips are too few for a covariance, or all of them for a line through several sizes.
    """
    _check(clips, reference, _SMALLEST_SHARE)
    if min(clips.clips, reference.clips) < _SIZES:
        raise DataError(
            f"FAD∞: {clips.clips} clips against {reference.clips}; at least {_SIZES} of each are needed, or there is "
            f"nothing to extrapolate over"
        )
    random = np.random.default_rng(seed)
    shares = 1 / np.linspace(1, 1 / _SMALLEST_SHARE, _SIZES)
    points = []
    for share in shares:
        count, beside = (max(2, round(share * side.clips)) for side in (clips, reference))
        distances = [
            frechet_distance(_drawn(clips, count, random), _drawn(reference, beside, random))
            for _ in range(1 if share == 1 else draws)
        ]
        points.append((count, float(np.mean(distances))))
    slope, value = np.polyfit([1 / count for count, _ in points], [distances for _, distances in points], 1)
    return FadInfinity(float(value), float(slope), tuple(points))


def fad_infinity_interval(
    clips: ClipEmbeddings, reference: ClipEmbeddings, seed: int = 0, resamples: int = 100
) -> tuple[Interval, FadInfinity]:
    """FAD∞ with its interval, from extrapolations of resampled clips, and the extrapolation itself."""
    estimate = fad_infinity(clips, reference, seed)
    if clips.clips < MIN_CLIPS:
        return Interval(estimate.value), estimate
    drawn = resampled_clips(clips.clips, resamples, seed)
    again = [fad_infinity(clips.select(draw), reference, seed + number, 1).value for number, draw in enumerate(drawn)]
    return centred_interval(estimate.value, again), estimate


def fad_by_clip(clips: ClipEmbeddings, reference: ClipEmbeddings) -> npt.NDArray[np.float64]:
    """Per-song FAD: of each clip by itself against the reference, [N] (Gui et al., section 3.3).

    A clip with one window has a covariance of 0: the rest measures its distance from the reference's mean.
    """
    _check(reference, reference)
    fixed = Gaussian.of(reference.values)
    return np.array([frechet_distance(Gaussian.of(clips.clip(n)), fixed) for n in range(clips.clips)])


def _drawn(clips: ClipEmbeddings, count: int, random: np.random.Generator) -> Gaussian:
    return Gaussian.of(clips.select(random.permutation(clips.clips)[:count]).values)


def _check(clips: ClipEmbeddings, reference: ClipEmbeddings, share: float = 1.0) -> None:
    if clips.dimension != reference.dimension:
        raise DataError(
            f"FAD: embeddings of {clips.dimension} and {reference.dimension} dimensions; equal ones are needed"
        )
    for name, side in (("clips", clips), ("reference", reference)):
        if share * len(side.values) <= side.dimension:
            needed = int(side.dimension / share) + 1
            raise DataError(
                f"FAD: {len(side.values)} vectors of {name} (windows of {side.clips} clips) in {side.dimension} "
                f"dimensions; at least {needed} are needed{'' if share == 1 else ' to extrapolate'}, or the covariance "
                f"says nothing. Take more clips, or KAD, which needs none"
            )
