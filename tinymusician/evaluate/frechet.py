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
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings
from tinymusician.evaluate.reference_statistics import Gaussian, ReferenceStatistics

_SIZES, _DRAWS = 8, 4
_SMALLEST_SHARE = 0.5


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

    Raises:
        DataError: it is not finite.
    """
    try:
        values, axes = np.linalg.eigh(one.covariance)
        root = axes * np.sqrt(np.maximum(values, 0))
        products = np.linalg.eigvalsh(root.T @ other.covariance @ root)
    except np.linalg.LinAlgError as error:
        raise DataError(f"FAD: the covariances have no eigenvalues ({error})") from error
    shared = np.sqrt(np.maximum(products, 0)).sum()
    apart = np.square(one.mean - other.mean).sum()
    distance = float(apart + np.trace(one.covariance) + np.trace(other.covariance) - 2 * shared)
    if not np.isfinite(distance):
        raise DataError("FAD: is not finite; the vectors of the clips or of the reference are too large")
    return max(0.0, distance)


def fad(clips: ClipEmbeddings, reference: ReferenceStatistics) -> float:
    """FAD of two sets.

    Raises:
        DataError: the dimensions differ, or a set has too few vectors for a covariance.
    """
    _check(clips, reference)
    return frechet_distance(Gaussian.of(clips.values), reference.gaussian)


def fad_interval(
    clips: ClipEmbeddings, reference: ReferenceStatistics, seed: int = 0, resamples: int = 200
) -> Interval:
    """FAD, with the interval for other sets of as many clips against this reference."""
    value = fad(clips, reference)
    if clips.clips < MIN_CLIPS:
        return Interval(value)
    return centred_interval(value, _resampled_fad(clips, reference, seed, resamples))


def _resampled_fad(
    clips: ClipEmbeddings, reference: ReferenceStatistics, seed: int, resamples: int
) -> npt.NDArray[np.float64]:
    """FAD of every resample of the clips."""
    fixed = reference.gaussian
    draws = resampled_clips(clips.clips, resamples, seed)
    return np.array([frechet_distance(Gaussian.of(clips.select(draw).values), fixed) for draw in draws])


def fad_infinity(
    clips: ClipEmbeddings, reference: ReferenceStatistics, seed: int = 0, draws: int = _DRAWS
) -> FadInfinity:
    """FAD extrapolated to infinitely many clips on both sides.

    Both sets are subsampled to the same share, from a half to all of their clips, so the bias of both falls together;
    Gui et al. keep the whole reference, and with it its share of the bias. So does this where the reference's vectors
    are not all known.

    Raises:
        DataError: half of the clips are too few for a covariance, or all of them for a line through several sizes.
    """
    _check(clips, reference, _SMALLEST_SHARE)
    drawable = reference.all_embeddings
    if min(clips.clips, drawable.clips if drawable else _SIZES) < _SIZES:
        raise DataError(
            f"FAD∞: {clips.clips} clips against {drawable.clips if drawable else 'a whole reference'}; at least "
            f"{_SIZES} of each are needed, or there is nothing to extrapolate over"
        )
    random = np.random.default_rng(seed)
    shares = 1 / np.linspace(1, 1 / _SMALLEST_SHARE, _SIZES)
    points = []
    for share in shares:
        distances = []
        for _ in range(1 if share == 1 else draws):
            some = _drawn(clips, share, random)
            other = _drawn(drawable, share, random) if drawable else reference.gaussian
            distances.append(frechet_distance(some, other))
        points.append((_count(clips, share), float(np.mean(distances))))
    slope, value = np.polyfit([1 / count for count, _ in points], [distances for _, distances in points], 1)
    return FadInfinity(float(value), float(slope), tuple(points))


def fad_infinity_interval(
    clips: ClipEmbeddings, reference: ReferenceStatistics, seed: int = 0, resamples: int = 100
) -> tuple[Interval, FadInfinity]:
    """FAD∞ with its interval, from extrapolations of resampled clips, and the extrapolation itself."""
    estimate = fad_infinity(clips, reference, seed)
    if clips.clips < MIN_CLIPS:
        return Interval(estimate.value), estimate
    drawn = resampled_clips(clips.clips, resamples, seed)
    again = [fad_infinity(clips.select(draw), reference, seed + number, 1).value for number, draw in enumerate(drawn)]
    return centred_interval(estimate.value, again), estimate


def fad_by_clip(clips: ClipEmbeddings, reference: ReferenceStatistics) -> npt.NDArray[np.float64]:
    """Per-song FAD: of each clip by itself against the reference, [N] (Gui et al., section 3.3).

    A clip with one window has a covariance of 0: the rest measures its distance from the reference's mean.
    """
    _check_dimension(clips, reference)
    _check_vectors("reference", reference.vectors, None, reference.dimension)
    fixed = reference.gaussian
    return np.array([frechet_distance(Gaussian.of(clips.clip(n)), fixed) for n in range(clips.clips)])


def _count(clips: ClipEmbeddings, share: float) -> int:
    return max(2, round(share * clips.clips))


def _drawn(clips: ClipEmbeddings, share: float, random: np.random.Generator) -> Gaussian:
    return Gaussian.of(clips.select(random.permutation(clips.clips)[: _count(clips, share)]).values)


def _check_dimension(clips: ClipEmbeddings, reference: ReferenceStatistics) -> None:
    if clips.dimension != reference.dimension:
        raise DataError(
            f"FAD: embeddings of {clips.dimension} and {reference.dimension} dimensions; equal ones are needed"
        )


def _check(clips: ClipEmbeddings, reference: ReferenceStatistics, share: float = 1.0) -> None:
    _check_dimension(clips, reference)
    _check_vectors("clips", len(clips.values), clips.clips, clips.dimension, share)
    whole = reference.all_embeddings
    number = None if whole is None else whole.clips
    _check_vectors("reference", reference.vectors, number, clips.dimension, share if whole else 1.0)


def _check_vectors(name: str, vectors: int | None, clips: int | None, dimension: int, share: float = 1.0) -> None:
    """Check that a share of a set's vectors is enough for a covariance, if their number is known."""
    if vectors is not None and share * vectors <= dimension:
        needed = int(dimension / share) + 1
        windows = "" if clips is None else f" (windows of {clips} clips)"
        purpose = "" if share == 1 else " to extrapolate"
        raise DataError(
            f"FAD: {vectors} vectors of {name}{windows} in {dimension} dimensions; at least {needed} are needed"
            f"{purpose}, or the covariance says nothing. Take more clips, or KAD, which needs none"
        )
