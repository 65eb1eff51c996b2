"""Claims about two models: no difference is no evidence."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.reproduce.paper import layer_cuts
from tinymusician.evaluate.bootstrap import Interval, paired_difference
from tinymusician.evaluate.claims import (
    ClaimResult,
    Verdict,
    at_most,
    higher,
    lower,
    not_worse,
    rising,
    slower,
    within_tolerance,
)
from tinymusician.evaluate.results import InferenceCost

NAN = float("nan")


def distance(value: float, spread: float = 0.1) -> Interval:
    return Interval(value, value - spread, value + spread)


def cost(lowest: float, highest: float) -> InferenceCost:
    return InferenceCost(
        length=1, seconds=1, real_time_factor=(lowest + highest) / 2, lowest=lowest, highest=highest, cpu=1, memory=1,
        gpu_memory=None, flops=None, joules=None, sizes={},
    )  # fmt: skip


def test_distances_differ_where_intervals_do_not_overlap() -> None:
    assert str(lower(distance(1), distance(2))) == "holds (1.000 and 2.000)"
    assert str(lower(distance(2), distance(1))) == "does not hold (2.000 and 1.000)"
    assert str(lower(distance(1), distance(2, 1.5))) == "undecided at this scale (1.000 and 2.000)"
    assert str(lower(distance(1), Interval(2))) == "undecided at this scale"
    assert lower(None, distance(1)).verdict == Verdict.UNDECIDED


def test_no_difference_is_no_evidence() -> None:
    """ "Not worse" is what remains of "worse": a proof of the contrary, or nothing."""
    assert not_worse(lower(distance(2), distance(1))).verdict == Verdict.HOLDS
    assert not_worse(lower(distance(1), distance(2))).verdict == Verdict.FAILS
    overlapping = not_worse(lower(distance(60, 50), distance(10, 50)))
    assert str(overlapping) == "no difference was found (60.000 and 10.000)"
    assert not_worse(lower(Interval(1), distance(2))) == ClaimResult(verdict=Verdict.UNDECIDED)


def test_clap_scores_are_compared_clip_by_clip() -> None:
    """Captions differ far more than two models do on one caption; NaN stands for a clip that is not finite."""
    random = np.random.default_rng(0)
    base = random.normal(0.5, 0.3, 200)
    better = base + 0.02 + random.normal(0, 0.02, 200)
    assert higher(better, base).verdict == Verdict.HOLDS
    assert higher(better, base).evidence.startswith("+0.0")
    assert higher(base, better).verdict == Verdict.FAILS
    assert higher(base, base).verdict == Verdict.UNDECIDED
    pairs = [NAN, *range(12), 3.0], [9.0, *(number - 0.5 for number in range(12)), NAN]
    difference = paired_difference(*pairs)
    assert difference is not None
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.5, 0.5, 0.5))
    assert higher([NAN, 1.0], [1.0, NAN]) == ClaimResult(verdict=Verdict.UNDECIDED)


def test_tolerance_uses_the_interval_of_the_difference() -> None:
    base = np.linspace(0.4, 0.6, 100)
    noise = np.random.default_rng(0).normal(0, 0.05, 100)
    assert within_tolerance(base + 0.001, base, 0.01).verdict == Verdict.HOLDS
    assert within_tolerance(base + 0.1, base, 0.01).verdict == Verdict.FAILS
    assert within_tolerance(base + noise, base, 0.01).verdict == Verdict.UNDECIDED


def test_times_differ_where_no_run_is_as_fast() -> None:
    assert str(slower(cost(2, 3), cost(1, 1.5))) == "holds (2.00 of its time)"
    assert str(slower(cost(1, 1.5), cost(2, 3))) == "does not hold (0.50 of its time)"
    assert str(slower(cost(1, 3), cost(2, 2))) == "undecided at this scale (1.00 of its time)"
    assert slower(None, cost(1, 2)).verdict == Verdict.UNDECIDED


def test_a_share_has_a_limit() -> None:
    assert str(at_most(0.45, 0.45)) == "holds (0.450)"
    assert at_most(0.46, 0.45).verdict == Verdict.FAILS


def test_scores_that_rise() -> None:
    random = np.random.default_rng(0)
    base = random.normal(0.5, 0.1, 200)
    rows = [base + lift for lift in (0.0, 0.1, 0.2)]
    assert rising(rows).verdict == Verdict.HOLDS
    assert rising(rows[::-1]).verdict == Verdict.FAILS
    assert rising([rows[0], base + random.normal(0, 0.1, 200), rows[2]]).verdict == Verdict.UNDECIDED


def test_students_of_three_sizes() -> None:
    assert layer_cuts(8) == [[7], [0, 7], [0, 2, 5, 7]]
    assert [len(layers) for layers in layer_cuts(48)] == [6, 12, 24]
    assert all(layers[-1] == 47 and layers == sorted(set(layers)) for layers in layer_cuts(48))
    assert layer_cuts(2) == [[1], [1], [1]]
