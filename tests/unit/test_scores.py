"""KAD, CLAP scores, label KL, intervals and degenerate clips against plain loops, closed forms and synthetic clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple

import numpy as np
import pytest
from scipy.stats import binomtest, entropy, sem, t

from tinymusician.errors import DataError
from tinymusician.evaluate.bootstrap import Interval, mean_interval, paired_difference, proportion_interval
from tinymusician.evaluate.clap_score import clap_by_clip, clap_score
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings
from tinymusician.evaluate.degenerate import count_degenerate, examine, loop, problems
from tinymusician.evaluate.kad import bandwidth, kad
from tinymusician.evaluate.label_kl import label_divergence
from tinymusician.evaluate.reference_statistics import ReferenceStatistics
from tinymusician.evaluate.report_tables import format_interval
from tinymusician.settings import DegenerateThresholds


def drawn(clips: int, dimension: int, seed: int, shift: float = 0.0, windows: int = 1) -> ClipEmbeddings:
    random = np.random.default_rng(seed)
    return ClipEmbeddings.of(list(shift + random.normal(size=(clips, windows, dimension))))


class TestKad:
    def test_it_is_the_mean_over_pairs_of_different_clips(self) -> None:
        one, other = drawn(5, 3, 0, windows=2), drawn(4, 3, 1, 0.5, windows=3)
        width = bandwidth(other)

        def mean(left: ClipEmbeddings, right: ClipEmbeddings, same: bool) -> float:
            values = [
                np.exp(-np.square(left.values[i] - right.values[j]).sum() / (2 * width**2))
                for i in range(len(left.values))
                for j in range(len(right.values))
                if not (same and left.owners[i] == right.owners[j])
            ]
            return float(np.mean(values))

        expected = 100 * (mean(one, one, True) + mean(other, other, True) - 2 * mean(one, other, False))
        assert kad(one, ReferenceStatistics.of(other), resamples=0).value == pytest.approx(expected, rel=1e-9)

    def test_the_closed_form_of_gaussians(self) -> None:
        """E k of normals with difference N(m, 2I) is (σ²/(σ²+2))^(d/2) · exp(-|m|² / 2(σ²+2))."""
        dimension, shift = 4, 0.5
        one, other = drawn(1500, dimension, 0, shift), drawn(1500, dimension, 1)
        square = bandwidth(other) ** 2
        peak = (square / (square + 2)) ** (dimension / 2)
        expected = 100 * 2 * peak * (1 - np.exp(-dimension * shift**2 / (2 * (square + 2))))
        actual = kad(one, ReferenceStatistics.of(other), resamples=50)
        assert actual.low is not None
        assert actual.high is not None
        assert actual.low < expected < actual.high
        assert actual.value == pytest.approx(expected, rel=0.15)

    def test_it_is_unbiased(self) -> None:
        result = [
            kad(drawn(40, 6, seed), ReferenceStatistics.of(drawn(40, 6, 500 + seed)), resamples=0).value
            for seed in range(60)
        ]
        assert abs(np.mean(result)) < 3 * np.std(result) / np.sqrt(len(result))
        assert min(result) < 0

    def test_undecidable_cases(self) -> None:
        with pytest.raises(DataError, match="all the same"):
            kad(drawn(4, 2, 0), ReferenceStatistics.of(ClipEmbeddings.of([np.ones((1, 2))] * 3)))
        with pytest.raises(DataError, match="the set has 1 clip; at least 2"):
            kad(drawn(1, 2, 0, windows=5), ReferenceStatistics.of(drawn(4, 2, 1)))
        with pytest.raises(DataError, match="2 and 3 dimensions"):
            kad(drawn(4, 2, 0), ReferenceStatistics.of(drawn(4, 3, 1)))

    def test_two_clips_have_a_value_without_interval(self) -> None:
        """Half of all draws of two clips hold one of them twice, and no pair."""
        random = np.random.default_rng(0)
        reference = ReferenceStatistics.of(ClipEmbeddings.of(list(random.normal(size=(30, 5, 4)))))
        for count in (2, 3):
            result = kad(ClipEmbeddings.of(list(random.normal(size=(count, 5, 4)))), reference)
            assert np.isfinite(result.value)
            assert result.low is None or np.isfinite([result.low, result.high]).all()

    def test_frames_are_thinned_evenly(self) -> None:
        """More vectors than can be held against each other: every clip keeps the same number, from end to end."""
        frames = np.arange(2 * 9000, dtype=np.float64).reshape(2, 9000, 1)
        result = ClipEmbeddings.of(list(frames)).subsampled()
        assert result.windows.tolist() == [4000, 4000]
        assert result.clip(0)[[0, -1], 0].tolist() == [0, 8999]
        assert np.diff(result.clip(1)[:, 0]).max() <= 3
        small = ClipEmbeddings.of(list(frames[:, :100]))
        assert small.subsampled() is small


class TestClapScore:
    def test_it_is_the_mean_cosine_of_a_clips_windows(self) -> None:
        clips = ClipEmbeddings.of([np.array([[2.0, 0.0], [0.0, 3.0]]), np.array([[0.0, 1.0]])])
        prompts = np.array([[5.0, 0.0], [0.0, 0.1]])
        result = clap_score(clips, prompts)
        assert clap_by_clip(clips, prompts).tolist() == pytest.approx([0.5, 1.0])
        assert result.score.value == pytest.approx(0.75)
        assert result.shuffled == pytest.approx((0.5 + 0.0) / 2)

    def test_shuffled_prompts_score_lower_where_prompts_matter_and_not_where_they_do_not(self) -> None:
        prompts = np.random.default_rng(0).normal(size=(30, 8))
        follows = clap_score(ClipEmbeddings.of(list((prompts + 0.5 * drawn(30, 8, 1).values)[:, None])), prompts)
        ignores = clap_score(drawn(30, 8, 2), prompts)
        assert follows.shuffled is not None
        assert follows.score.value > follows.shuffled + 0.3
        assert follows.p_shuffled == pytest.approx(1 / 1001)
        assert ignores.p_shuffled is not None
        assert ignores.p_shuffled > 0.05

    def test_the_same_seed_gives_the_same_interval(self) -> None:
        clips, prompts = drawn(12, 4, 0), drawn(12, 4, 1).values
        assert clap_score(clips, prompts, seed=3) == clap_score(clips, prompts, seed=3)

    def test_one_prompt_cannot_be_shuffled(self) -> None:
        result = clap_score(drawn(3, 2, 0), np.ones((3, 2)))
        assert (result.shuffled, result.p_shuffled) == (None, None)

    def test_every_clip_needs_a_prompt(self) -> None:
        with pytest.raises(DataError, match="one prompt a clip"):
            clap_score(drawn(3, 2, 0), np.ones((2, 2)))


class TestLabels:
    def test_kl_equals_scipy(self) -> None:
        random = np.random.default_rng(0)
        real, made = random.dirichlet(np.ones(5), 20), random.dirichlet(np.ones(5), 20)
        result = label_divergence(real, made)
        assert result.forward.value == pytest.approx(np.mean([entropy(p, q) for p, q in zip(real, made, strict=True)]))
        assert result.reverse.value == pytest.approx(np.mean([entropy(q, p) for p, q in zip(real, made, strict=True)]))
        assert label_divergence(real, real).forward.value == 0
        assert label_divergence(real, real).agreement.value == 1

    def test_certainty_stays_finite(self) -> None:
        result = label_divergence(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
        assert result.forward.value == pytest.approx(np.log(1e6), rel=1e-4)

    def test_non_distribution_is_rejected(self) -> None:
        with pytest.raises(DataError, match="sum to 1"):
            label_divergence(np.ones((2, 3)), np.ones((2, 3)) / 3)
        with pytest.raises(DataError, match="pairs of clips"):
            label_divergence(np.ones((2, 1)), np.ones((3, 1)))


class TestIntervals:
    def test_the_mean_of_normal_numbers(self) -> None:
        values = np.random.default_rng(0).normal(3, 2, 400)
        result = mean_interval(values)
        half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
        assert result.low == pytest.approx(values.mean() - half, abs=0.03)
        assert result.high == pytest.approx(values.mean() + half, abs=0.03)

    def test_few_values_are_given_instead_of_an_interval(self) -> None:
        few = mean_interval([1.0, 2.0, 4.5])
        assert few == Interval(2.5, None, None, (1.0, 2.0, 4.5))
        assert format_interval(few) == "2.5 (1, 2, 4.5)"
        assert format_interval(mean_interval([4.0])) == "4"

    @pytest.mark.parametrize("values", [[], [1.0] * 12 + [np.nan], [np.inf] * 3])
    def test_nothing_and_what_is_not_finite_are_errors(self, values: list[float]) -> None:
        with pytest.raises(DataError, match=f"mean of {len(values)} values"):
            mean_interval(values)

    @pytest.mark.parametrize(
        ("distribution", "truth"),
        [
            (lambda random, size: random.normal(3, 2, size), 3.0),
            (lambda random, size: random.uniform(0, 1, size), 0.5),
            (lambda random, size: random.lognormal(0, 1, size), np.exp(0.5)),
            (lambda random, size: random.random(size) < 0.05, 0.05),
            (lambda random, size: random.random(size) < 0.5, 0.5),
            (lambda random, size: random.integers(1, 4, size), 2.0),
        ],
        ids=["normal", "uniform", "lognormal", "Bernoulli .05", "Bernoulli .5", "three values"],
    )
    @pytest.mark.parametrize("clips", [20, 50])
    def test_intervals_of_means_contain_the_truth(
        self, distribution: Callable[[np.random.Generator, int], np.ndarray], truth: float, clips: int
    ) -> None:
        """In 90 % of simulated evaluations or more, where 95 % are stated."""
        random, trials = np.random.default_rng(0), 1000
        samples = [distribution(random, clips) for _ in range(trials)]
        intervals = [
            proportion_interval(sample) if sample.dtype == bool else mean_interval(sample, seed, 500)
            for seed, sample in enumerate(samples)
        ]
        assert np.mean([one.low <= truth <= one.high for one in intervals]) >= 0.90

    @pytest.mark.parametrize("successes", [0, 1, 7, 20])
    def test_proportions_have_exact_intervals(self, successes: int) -> None:
        """Those of SciPy's binomial test."""
        result = proportion_interval([1] * successes + [0] * (20 - successes))
        expected = binomtest(successes, 20).proportion_ci(0.95, "exact")
        assert (result.low, result.high) == pytest.approx(tuple(expected), abs=1e-9)

    def test_equal_values(self) -> None:
        assert mean_interval([2.5] * 12) == Interval(2.5, 2.5, 2.5)
        assert paired_difference([0.3] * 20, [0.3] * 20) == Interval(0, 0, 0)

    @pytest.mark.parametrize("values", [[0.1] * 19 + [0.9], [0.7] * 19 + [0.9], [0.3] * 9 + [0.9], [0.0] * 19 + [0.4]])
    def test_almost_equal_values_have_students_interval(self, values: list[float]) -> None:
        """Many resamples have no spread, or that of rounding alone."""
        result = mean_interval(values)
        assert (result.low, result.high) == pytest.approx(
            t.interval(0.95, len(values) - 1, np.mean(values), sem(values)), rel=1e-9
        )

    def test_paired_difference_removes_common_spread(self) -> None:
        common = np.random.default_rng(1).normal(0, 5, 50)
        result = paired_difference(common + 0.2, common)
        assert result is not None
        assert result.low == pytest.approx(0.2)
        assert result.high == pytest.approx(0.2)


class TestGuards:
    rate = 16_000

    def tone(self, level: float = 0.3) -> np.ndarray:
        return level * np.sin(2 * np.pi * 440 * np.arange(self.rate) / self.rate)

    def test_music_is_not_degenerate(self) -> None:
        result = examine(self.tone(), self.rate, np.random.default_rng(0).integers(0, 512, (4, 50)))
        assert problems(result, DegenerateThresholds()) == ()

    def test_each_fault_has_its_name(self) -> None:
        faults = {
            "silent": np.zeros(self.rate),
            "clipped": np.clip(self.tone(5.0), -1, 1),
            "offset": self.tone() + 0.2,
            "quiet": np.where(np.arange(self.rate) < 9000, 0.004, 1) * self.tone(),
            "not finite": np.where(np.arange(self.rate) == 7, np.nan, self.tone()),
        }
        for name, wave in faults.items():
            assert problems(examine(wave, self.rate), DegenerateThresholds()) == (name,)
        assert problems(examine(np.zeros(0), self.rate), DegenerateThresholds()) == ("silent",)

    def test_pause_is_not_silence(self) -> None:
        wave = self.tone()
        wave[: self.rate // 2] = 0
        result = examine(wave, self.rate)
        assert result.silent == pytest.approx(0.5)
        assert problems(result, DegenerateThresholds()) == ()

    @pytest.mark.parametrize(("decibels", "quiet"), [(-44.5, 0.0), (-45.5, 1.0)])
    def test_quiet_frames_are_below_minus_45_decibels(self, decibels: float, quiet: float) -> None:
        """The power of a sine of amplitude a is a²/2; the share over several clips is the mean of theirs."""
        amplitude = np.sqrt(2) * 10 ** (decibels / 20)
        clips = [examine(self.tone(amplitude), self.rate), examine(self.tone(), self.rate)]
        assert [clip.quiet for clip in clips] == [quiet, 0]
        counts = count_degenerate(np.array([astuple(clip) for clip in clips]), DegenerateThresholds())
        assert counts.quiet == quiet / 2
        assert counts.by_fault["quiet"] == quiet

    def test_loops_are_detected_with_their_length(self) -> None:
        phrase = np.random.default_rng(0).integers(0, 512, (4, 12))
        assert loop(np.tile(phrase, 10)) == (1.0, 12)
        assert loop(np.full((4, 60), 5)) == (1.0, 1)
        result = examine(self.tone(), self.rate, np.tile(phrase, 10))
        assert problems(result, DegenerateThresholds()) == ("looped",)
        assert problems(result, DegenerateThresholds(looped=1.0)) == ()

    def test_too_short_for_a_loop(self) -> None:
        assert loop(np.zeros((4, 2))) == (0.0, 0)
