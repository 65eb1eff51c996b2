"""The Fréchet audio distance against closed forms, SciPy's matrix square root and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import ortho_group

from tinymusician.errors import DataError
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings
from tinymusician.evaluate.frechet import (
    fad,
    fad_by_clip,
    fad_infinity,
    fad_infinity_interval,
    fad_interval,
    frechet_distance,
)
from tinymusician.evaluate.reference_statistics import Gaussian, ReferenceStatistics


def drawn(
    clips: int, dimension: int, seed: int, shift: float = 0.0, scale: float = 1.0, windows: int = 1
) -> ClipEmbeddings:
    random = np.random.default_rng(seed)
    return ClipEmbeddings.of(list(shift + scale * random.normal(size=(clips, windows, dimension))))


def drawn_reference(clips: int, dimension: int, seed: int, windows: int = 1) -> ReferenceStatistics:
    return ReferenceStatistics.of(drawn(clips, dimension, seed, windows=windows))


def standard(dimension: int, shift: float = 0.0, scale: float = 1.0) -> Gaussian:
    return Gaussian(np.full(dimension, shift), np.eye(dimension) * scale**2)


def test_the_closed_form_of_two_round_gaussians() -> None:
    # d (δ² + (1 - s)²) = 128 (0.01 + 0.25)
    assert frechet_distance(standard(128), standard(128, 0.1, 1.5)) == pytest.approx(33.28, abs=1e-9)


@pytest.mark.parametrize("dimension", [1, 3, 40])
def test_it_agrees_with_scipys_matrix_square_root(dimension: int) -> None:
    random = np.random.default_rng(dimension)
    factors = [random.normal(size=(dimension, dimension + 2)) for _ in range(2)]
    one, other = (Gaussian(random.normal(size=dimension), factor @ factor.T) for factor in factors)
    root = sqrtm(one.covariance @ other.covariance).real
    expected = np.square(one.mean - other.mean).sum() + np.trace(one.covariance + other.covariance - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(other, one) == pytest.approx(expected, rel=1e-8)


def test_singular_covariances() -> None:
    one = Gaussian(np.zeros(4), np.diag([4.0, 1.0, 0.0, 0.0]))
    other = Gaussian(np.zeros(4), np.diag([1.0, 1.0, 9.0, 0.0]))
    assert frechet_distance(one, other) == pytest.approx(1 + 9, abs=1e-9)  # squared differences of the deviations


def test_distance_to_itself_is_zero_and_rotation_invariant() -> None:
    clips, others = drawn(300, 24, 0, windows=2), drawn(200, 24, 1, 0.3, 1.2)
    assert fad(clips, ReferenceStatistics.of(clips)) == pytest.approx(0, abs=1e-9)
    turn = ortho_group.rvs(24, random_state=0)
    turned, turned_others = (ClipEmbeddings(side.values @ turn, side.owners) for side in (clips, others))
    expected = fad(clips, ReferenceStatistics.of(others))
    assert fad(turned, ReferenceStatistics.of(turned_others)) == pytest.approx(expected, rel=1e-9)


def test_bias_equals_the_formula() -> None:
    dimension, count = 16, 200
    truth = standard(dimension)
    result = [frechet_distance(Gaussian.of(drawn(count, dimension, seed).values), truth) for seed in range(200)]
    bias = dimension / count + dimension * (dimension + 1) / (4 * count)
    assert np.mean(result) == pytest.approx(bias, rel=0.05)


def test_extrapolation_removes_the_bias() -> None:
    truth = 8 * (0.3**2)
    plain, without = [], []
    for seed in range(40):
        clips, reference = drawn(160, 8, seed, 0.3), drawn_reference(160, 8, 1000 + seed)
        plain.append(fad(clips, reference))
        without.append(fad_infinity(clips, reference, seed).value)
    error = np.std(without) / np.sqrt(len(without))
    assert np.mean(plain) - truth > 0.1
    assert abs(np.mean(without) - truth) < 3 * error + 0.02


def test_the_extrapolation_shows_its_points() -> None:
    result = fad_infinity(drawn(120, 4, 0), drawn_reference(120, 4, 1))
    assert result.points[0][0] == 120
    assert result.points[-1][0] == 60
    assert result.slope > 0


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    truth, held = 6 * 0.4**2, 0
    for seed in range(40):
        interval, _ = fad_infinity_interval(
            drawn(120, 6, seed, 0.4), drawn_reference(2000, 6, 900 + seed), seed, resamples=60
        )
        assert interval.low is not None
        assert interval.high is not None
        held += interval.low <= truth <= interval.high
    assert held >= 33


def test_intervals_narrow_with_more_clips() -> None:
    reference = drawn_reference(500, 4, 5)
    widths = []
    for count in (50, 800):
        interval = fad_interval(drawn(count, 4, 6, 0.5), reference)
        assert interval.low is not None
        assert interval.high is not None
        assert interval.low < interval.value < interval.high
        widths.append(interval.high - interval.low)
    assert widths[1] < widths[0] / 2


def test_folder_of_clips() -> None:
    reference = drawn_reference(400, 5, 0)
    near, far = drawn(1, 5, 1, windows=30), drawn(1, 5, 1, 4.0, windows=30)
    single = ClipEmbeddings.of([np.full((1, 5), 2.0)])
    fixed = reference.gaussian
    scores = [fad_by_clip(side, reference)[0] for side in (near, far, single)]
    assert scores[0] < scores[1]
    assert scores[2] == pytest.approx(np.square(2 - fixed.mean).sum() + np.trace(fixed.covariance))


def test_too_few_or_unlike_vectors_are_refused_by_their_numbers() -> None:
    with pytest.raises(DataError, match=r"FAD: 16 vectors of clips .* in 16 dimensions; at least 17 are needed"):
        fad(drawn(16, 16, 0), drawn_reference(40, 16, 1))
    with pytest.raises(DataError, match=r"20 vectors of clips .* at least 33 are needed to extrapolate"):
        fad_infinity(drawn(20, 16, 0), drawn_reference(40, 16, 1))
    with pytest.raises(DataError, match="16 and 8 dimensions"):
        fad(drawn(40, 16, 0), drawn_reference(40, 8, 1))
    with pytest.raises(DataError, match="clip 1 and 0 others hold numbers that are not finite"):
        ClipEmbeddings.of([np.zeros((1, 2)), np.full((1, 2), np.nan)])
    with pytest.raises(DataError, match="without windows"):
        ClipEmbeddings.of([np.zeros((0, 2))])


def test_few_clips_of_many_frames() -> None:
    """Frames make a covariance, but only clips make an interval and a line."""
    reference = drawn_reference(40, 4, 1, windows=20)
    alone, few = drawn(1, 4, 0, windows=200), drawn(7, 4, 0, windows=50)
    assert fad_interval(alone, reference).low is None
    assert fad_interval(alone, reference).value == fad(alone, reference)
    for clips in (alone, few):
        with pytest.raises(DataError, match=r"FAD∞: [17] clips against 40; at least 8 of each are needed"):
            fad_infinity(clips, reference)
    assert len({count for count, _ in fad_infinity(drawn(8, 4, 0, windows=50), reference).points}) >= 5


def test_identical_clips_have_no_spread() -> None:
    same = ClipEmbeddings.of([np.ones((1, 3))] * 10)
    assert fad(same, drawn_reference(500, 3, 0)) == pytest.approx(3 * 1 + 3, rel=0.2)  # |μ|² + tr Σ


def test_subsets_are_of_clips_in_order() -> None:
    clips = ClipEmbeddings.of([np.full((2, 1), 0.0), np.full((1, 1), 1.0), np.full((3, 1), 2.0)])
    result = clips.select(np.array([2, 0, 2]))
    assert result.values[:, 0].tolist() == [2, 2, 2, 0, 0, 2, 2, 2]
    assert result.owners.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert clips.clip(2).tolist() == [[2], [2], [2]]
