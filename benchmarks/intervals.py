"""How often 95 % intervals contain the truth, by simulation: means of clips, and distances between sets of clips.

Usage: python -m benchmarks.intervals
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.report import report
from tinymusician.evaluate.bootstrap import Interval, mean_interval, proportion_interval
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings
from tinymusician.evaluate.frechet import fad_interval
from tinymusician.evaluate.kad import kad
from tinymusician.evaluate.reference_statistics import ReferenceStatistics

TRIALS, SET_TRIALS = 2000, 300
CLIPS = (10, 20, 50)
DIMENSION, REFERENCE = 8, 400
Draw = Callable[[np.random.Generator, int], np.ndarray]
DISTRIBUTIONS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda random, size: random.normal(3, 2, size), 3.0),
    "uniform": (lambda random, size: random.uniform(0, 1, size), 0.5),
    "lognormal": (lambda random, size: random.lognormal(0, 1, size), float(np.exp(0.5))),
    "Bernoulli .05": (lambda random, size: random.random(size) < 0.05, 0.05),
    "Bernoulli .5": (lambda random, size: random.random(size) < 0.5, 0.5),
}


def percentile_interval(values: np.ndarray, seed: int) -> Interval:
    """The interval before the bootstrap-t."""
    drawn = values[np.random.default_rng(seed).integers(0, len(values), (2000, len(values)))].mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))


def coverage(intervals: list[Interval], truth: float) -> float:
    """The share of intervals that contain the truth."""
    return float(np.mean([one.low is not None and one.low <= truth <= (one.high or 0) for one in intervals]))


def clips_of(random: np.random.Generator, count: int, scale: float) -> ClipEmbeddings:
    """Clips of three windows that depend on each other."""
    centres = random.normal(0.3 * (scale != 1), scale, (count, 1, DIMENSION))
    return ClipEmbeddings.of(list(centres + 0.3 * random.normal(size=(count, 3, DIMENSION))))


def main() -> None:
    """Print both tables, and record them."""
    figures: dict[str, float] = {}
    print(f"means, {TRIALS} trials each: coverage of the interval, and of the percentile interval")
    for name, (draw, truth) in DISTRIBUTIONS.items():
        for clips in CLIPS:
            random = np.random.default_rng(0)
            values = [draw(random, clips) for _ in range(TRIALS)]
            covered = coverage([interval_of(one, seed) for seed, one in enumerate(values)], truth)
            before = coverage([percentile_interval(one, seed) for seed, one in enumerate(values)], truth)
            figures |= {f"{name}, {clips} clips": covered, f"{name}, {clips} clips, percentiles": before}
            print(f"  {name:14} n = {clips:3}: {covered:.3f}  {before:.3f}", flush=True)
    print(f"distances of {DIMENSION}-dimensional sets, {SET_TRIALS} trials each: coverage of their mean distance")
    for clips in CLIPS[1:]:
        reference = ReferenceStatistics.of(clips_of(np.random.default_rng(1), REFERENCE, 1.0))
        for name, interval in (("FAD", fad_interval), ("KAD", kad)):
            figures[f"{name}, {clips} clips"] = set_coverage(interval, clips, reference)
            print(f"  {name} n = {clips:3}: {figures[f'{name}, {clips} clips']:.3f}", flush=True)
    report(
        "intervals",
        figures,
        {"trials": TRIALS, "set_trials": SET_TRIALS, "dimension": DIMENSION, "reference": REFERENCE},
    )


def interval_of(values: np.ndarray, seed: int) -> Interval:
    """The interval of a proportion for outcomes, of a mean for numbers."""
    return proportion_interval(values) if values.dtype == bool else mean_interval(values, seed)


def set_coverage(interval: Callable[..., Interval], clips: int, reference: ReferenceStatistics) -> float:
    """The coverage of a distance's intervals for sets of as many clips."""
    random = np.random.default_rng(2)
    sets = [clips_of(random, clips, 1.2) for _ in range(4 * SET_TRIALS)]
    truth = float(np.mean([interval(one, reference, 0, 1).value for one in sets]))
    return coverage([interval(one, reference, seed) for seed, one in enumerate(sets[:SET_TRIALS])], truth)


if __name__ == "__main__":
    main()
