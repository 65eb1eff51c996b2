"""What is said of the paper's claims: nothing holds because nothing was found against it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jobs.reproduce.claims import clap_difference, higher, lower, not_worse, rising, slower, within_tolerance
from jobs.reproduce.paper import layer_cuts

DISTANCE = "fad_infinity"


def row(value: float, spread: float | None = 0.1, clips: Any = (), times: tuple[float, float] = (1.0, 1.1)) -> Any:
    low, high = (None, None) if spread is None else (value - spread, value + spread)
    cost = {"lowest": times[0], "highest": times[1], "real_time_factor": sum(times) / 2}
    score = {"value": float(np.nanmean(np.array(clips, np.float64))) if len(clips) else None}
    figures = {DISTANCE: {"value": value, "low": low, "high": high}, "cost": cost}
    return {**figures, "clap": {"score": score}, "clap_by_clip": list(clips)}


def test_distances_differ_where_intervals_do_not_overlap() -> None:
    assert lower(row(1), row(2), DISTANCE) == "holds (1.000 and 2.000)"
    assert lower(row(2), row(1), DISTANCE) == "does not hold (2.000 and 1.000)"
    assert lower(row(1), row(2, 1.5), DISTANCE) == "cannot be told at this scale (1.000 and 2.000)"
    assert lower(row(1), row(2, None), DISTANCE) == "cannot be told at this scale"
    assert lower({DISTANCE: None}, row(1), DISTANCE) == "cannot be told at this scale"


def test_to_find_no_difference_proves_nothing() -> None:
    """ "Not worse" is what remains of "worse": a proof of the contrary, or nothing."""
    assert not_worse(lower(row(2), row(1), DISTANCE)) == "holds (2.000 and 1.000)"
    assert not_worse(lower(row(1), row(2), DISTANCE)) == "does not hold (1.000 and 2.000)"
    assert not_worse(lower(row(60, 50), row(10, 50), DISTANCE)) == "no difference was found (60.000 and 10.000)"
    assert not_worse(lower(row(1, None), row(2), DISTANCE)) == "cannot be told at this scale"


def test_clap_scores_are_compared_clip_by_clip() -> None:
    """Captions differ far more than two models do on one caption; null stands for a clip that was not sound."""
    random = np.random.default_rng(0)
    base = random.normal(0.5, 0.3, 200)
    better = base + 0.02 + random.normal(0, 0.02, 200)
    assert higher(row(0, clips=better), row(0, clips=base)).startswith("holds (+0.0")
    assert higher(row(0, clips=base), row(0, clips=better)).startswith("does not hold (-0.0")
    assert higher(row(0, clips=base), row(0, clips=base)).startswith("cannot be told")
    result = clap_difference(row(0, clips=[None, 1.0, 2.0, 3.0]), row(0, clips=[9.0, 0.5, 1.5, None]))
    assert result == pytest.approx((0.5, 0.5, 0.5))
    assert higher(row(0, clips=[None, 1.0]), row(0, clips=[1.0, None])) == "cannot be told at this scale"


def test_tolerance_uses_the_interval_of_the_difference() -> None:
    base = np.linspace(0.4, 0.6, 100)
    noise = np.random.default_rng(0).normal(0, 0.05, 100)
    assert within_tolerance(row(0, clips=base + 0.001), row(0, clips=base), 0.01).startswith("holds")
    assert within_tolerance(row(0, clips=base + 0.1), row(0, clips=base), 0.01).startswith("does not hold")
    assert within_tolerance(row(0, clips=base + noise), row(0, clips=base), 0.01).startswith("cannot be told")


def test_times_differ_where_no_run_is_as_fast() -> None:
    assert slower(row(0, times=(2, 3)), row(0, times=(1, 1.5))) == "holds (2.00 of its time)"
    assert slower(row(0, times=(1, 1.5)), row(0, times=(2, 3))) == "does not hold (0.50 of its time)"
    assert slower(row(0, times=(1, 3)), row(0, times=(2, 2))) == "cannot be told at this scale (1.00 of its time)"


def test_scores_that_rise() -> None:
    random = np.random.default_rng(0)
    base = random.normal(0.5, 0.1, 200)
    rows = [row(0, clips=base + lift) for lift in (0.0, 0.1, 0.2)]
    assert rising(rows).startswith("holds (")
    assert rising(rows[::-1]).startswith("does not hold (")
    assert rising([rows[0], row(0, clips=base + random.normal(0, 0.1, 200)), rows[2]]).startswith("cannot be told")


def test_students_of_three_sizes() -> None:
    assert layer_cuts(8) == [[7], [0, 7], [0, 2, 5, 7]]
    assert [len(layers) for layers in layer_cuts(48)] == [6, 12, 24]
    assert all(layers[-1] == 47 and layers == sorted(set(layers)) for layers in layer_cuts(48))
    assert layer_cuts(2) == [[1], [1], [1]]
