"""Statistics over the seeds of a sweep, and the paper's claims about its objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tinymusician.evaluate.bootstrap import Interval
from tinymusician.evaluate.claims import Claim, ClaimResult, Verdict
from tinymusician.evaluate.sweep_results import Grid, StudentMetrics


@dataclass(frozen=True)
class Criterion:
    """A metric by which students of different objectives can be compared; `sign` is 1 where higher is better."""

    name: str
    description: str
    sign: int

    def of(self, metrics: StudentMetrics) -> float:
        """The metric's value."""
        return float(getattr(metrics, self.name))


CRITERIA = (
    Criterion("kl", "forward KL on test prompts", -1),
    Criterion("reverse_kl", "reverse KL on test prompts", -1),
    Criterion("kad", "KAD of its clips", -1),
    Criterion("clap", "CLAP score of its clips", 1),
    Criterion("teacher_nll", "teacher's NLL of its clips", -1),
)


def fluctuation(values: Sequence[float]) -> float:
    """How much a curve moves up and down: (Σ|v_{i+1} - v_i| - |v_n - v_0|) / |v_n - v_0|.

    0 for a monotonic curve; 1 for one whose detours are as long as its net change. It has no unit, so curves of
    different losses can be compared by it.
    """
    array = np.asarray(values, np.float64)
    path, net = np.abs(np.diff(array)).sum(), abs(array[-1] - array[0])
    return float((path - net) / net) if net > 0 else float("inf")


def spread(values: Sequence[float]) -> Interval:
    """The mean over seeds, with the lowest and highest seed; three trainings are too few for a confidence interval."""
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return Interval(float(array[0]))
    return Interval(float(array.mean()), float(array.min()), float(array.max()))


def is_best(runs: Sequence[float], others: Mapping[str, Sequence[float]], sign: int) -> ClaimResult:
    """Whether one value of a grid is the best of all.

    It is if its worst seed is better than the best seed of every other; it is not if the worst seed of some other is
    better than its best. One training per value decides nothing.
    """
    if min(len(values) for values in (runs, *others.values())) < 2:
        return ClaimResult(verdict=Verdict.UNDECIDED)
    signed = sign * np.asarray(runs)
    signed_others = {name: sign * np.asarray(values) for name, values in others.items()}
    if all(signed.min() > values.max() for values in signed_others.values()):
        return ClaimResult(verdict=Verdict.HOLDS)
    better = [name for name, values in signed_others.items() if values.min() > signed.max()]
    if better:
        return ClaimResult(verdict=Verdict.FAILS, evidence=f"better: {', '.join(better)}")
    return ClaimResult(verdict=Verdict.UNDECIDED)


def objective_claims(grid: Grid, objective: str) -> tuple[Claim, ...]:
    """The paper's claims about its objective (figures 2 and 3)."""

    def compare(metric: Callable[[StudentMetrics], float], sign: int) -> ClaimResult:
        values = {name: [metric(seed.final) for seed in seeds] for name, seeds in grid.items()}
        others = {name: seeds for name, seeds in values.items() if name != objective}
        return is_best(values[objective], others, sign)

    results = {
        "its validation loss fluctuates least": compare(lambda final: final.fluctuation, -1),
        "its test loss is the lowest (each by its own objective, so this says little)": compare(
            lambda final: final.test_loss, -1
        ),
    }
    results |= {f"best by {one.description}": compare(one.of, one.sign) for one in CRITERIA}
    return tuple(
        Claim(source="figures 2, 3", statement=statement, result=result) for statement, result in results.items()
    )
