"""The kernel audio distance: an unbiased distance of two sets of clips, without Gaussians and covariances.

    MMD² = E k(x, x') + E k(y, y') - 2 E k(x, y),      k(a, b) = exp(-|a - b|² / 2σ²)

Source: Chung et al., arXiv 2502.15602, eq. 3-5: σ is the median distance within the reference, and the value is
multiplied by 100, as their toolkit does. Windows of one clip depend on each other, so only pairs of different clips
count; the estimate is then unbiased (and may be below 0) for any number of windows per clip. Of more than 8,000
vectors, as embeddings with one per frame give, each clip keeps the same number, evenly spaced.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist, pdist

from tinymusician.errors import DataError
from tinymusician.evaluate.bootstrap import MIN_CLIPS, Interval, centred_interval, resampled_clips
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings, Floats
from tinymusician.evaluate.reference_statistics import ReferenceStatistics

SCALE = 100.0
_BLOCK, _MOST_FOR_MEDIAN = 1024, 2000


def bandwidth(reference: ClipEmbeddings) -> float:
    """The median distance of two vectors of the reference, of at most 2,000 evenly spaced ones.

    Raises:
        DataError: they are all equal.
    """
    step = max(1, -(-len(reference.values) // _MOST_FOR_MEDIAN))
    median = float(np.median(pdist(reference.values[::step]))) if len(reference.values) > 1 else 0.0
    if median == 0:
        raise DataError("KAD: the vectors of the reference are all the same; a set of different clips is needed")
    return median


def kad(clips: ClipEmbeddings, statistics: ReferenceStatistics, seed: int = 0, resamples: int = 200) -> Interval:
    """KAD, with the interval for other sets of as many clips against this reference.

    Raises:
        DataError: the dimensions differ, a set has a single clip, or the reference has no embeddings.
    """
    reference = statistics.embeddings
    if reference is None:
        raise DataError("KAD: the reference statistics have mean and covariance only; the embeddings are needed")
    if clips.dimension != reference.dimension:
        raise DataError(
            f"KAD: embeddings of {clips.dimension} and {reference.dimension} dimensions; equal ones are needed"
        )
    for name, side in (("set", clips), ("reference", reference)):
        if side.clips < 2:
            raise DataError(f"KAD: the {name} has {side.clips} clip; at least 2 are needed")
    clips, reference = clips.subsampled(), reference.subsampled()
    width = bandwidth(reference)
    every, resamples = np.ones((1, clips.clips)), resamples if clips.clips >= MIN_CLIPS else 0
    draws = resampled_clips(clips.clips, resamples, seed)
    counts = np.stack([np.bincount(draw, minlength=clips.clips) for draw in draws]) if resamples else every[:0]
    weights = np.concatenate([every, counts])
    reference_weights = np.ones((len(weights), reference.clips))
    within = _within(clips, weights, width) + _within(reference, reference_weights[:1], width)
    distances = SCALE * (within - 2 * _between(clips, weights, reference, width))
    if not np.isfinite(distances[0]):
        raise DataError("KAD: is not finite; the vectors of the clips or of the reference are too large")
    drawn = distances[1:][np.isfinite(distances[1:])]  # a draw of one clip alone has no pair
    return centred_interval(float(distances[0]), drawn) if len(drawn) else Interval(float(distances[0]))


def _within(side: ClipEmbeddings, weights_RN: Floats, width: float) -> npt.NDArray[np.float64]:
    """The mean kernel of two vectors of different clips, when clip n counts `weights_RN[r, n]` times, [R]."""
    each = weights_RN[:, side.owners]
    total, pairs = np.zeros(len(each)), each.sum(axis=1) ** 2
    for start in range(0, len(side.values), _BLOCK):
        rows = slice(start, start + _BLOCK)
        kernel = _kernel(side.values[rows], side.values, width)
        kernel[side.owners[rows, None] == side.owners] = 0
        total += (each[:, rows] * (each @ kernel.T)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / (pairs - np.square(weights_RN * side.windows).sum(axis=1)))


def _between(one: ClipEmbeddings, weights_RN: Floats, other: ClipEmbeddings, width: float) -> npt.NDArray[np.float64]:
    """The mean kernel between a vector of each side, [R]."""
    each = weights_RN[:, one.owners]
    total = np.zeros(len(each))
    for start in range(0, len(one.values), _BLOCK):
        rows = slice(start, start + _BLOCK)
        total += each[:, rows] @ _kernel(one.values[rows], other.values, width).sum(axis=1)
    return np.asarray(total / (each.sum(axis=1) * len(other.values)))


def _kernel(one: Floats, other: Floats, width: float) -> Floats:
    return np.asarray(np.exp(-cdist(one, other, "sqeuclidean") / (2 * width**2)))
