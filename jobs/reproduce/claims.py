"""What can be told of two models' figures: it holds, it does not, or it cannot be told at this scale.

Distances are of sets, so they differ where their 95 % intervals do not overlap. CLAP scores are of the same captions,
so they differ where the interval of the paired difference lies on one side of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tinymusician.evaluate.bootstrap import Interval, difference

ModelRow = dict[str, Any]
HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told at this scale"


def lower(one: ModelRow, other: ModelRow, name: str) -> str:
    """Whether a distance of `one` is below that of `other`."""
    first, second = one[name], other[name]
    if any(figure is None or figure["low"] is None for figure in (first, second)):
        return UNKNOWN
    beside = f"{first['value']:.3f} and {second['value']:.3f}"
    if first["high"] < second["low"]:
        return f"{HOLDS} ({beside})"
    return f"{FAILS if second['high'] < first['low'] else UNKNOWN} ({beside})"


def higher(one: ModelRow, other: ModelRow) -> str:
    """Whether the CLAP score of `one` is above that of `other`, clip by clip."""
    difference = clap_difference(one, other)
    if difference.low is None or difference.high is None:
        return UNKNOWN
    verdict = HOLDS if difference.low > 0 else FAILS if difference.high < 0 else UNKNOWN
    return f"{verdict} ({_format_interval(difference)})"


def not_worse(lower_verdict: str) -> str:
    """What "is not worse" amounts to, of what was told of "is worse": not to find a difference is not to prove none."""
    verdict, _, beside = lower_verdict.partition(" (")
    worse = {HOLDS: FAILS, FAILS: HOLDS, UNKNOWN: "no difference was found"}[verdict]
    return f"{worse} ({beside}" if beside else UNKNOWN


def within_tolerance(one: ModelRow, other: ModelRow, share: float) -> str:
    """Whether the CLAP score of `one` differs from that of `other` by no more than a share of it."""
    difference, most = clap_difference(one, other), share * abs(other["clap"]["score"]["value"] or 0)
    if difference.low is None or difference.high is None:
        return UNKNOWN
    inside, outside = max(-difference.low, difference.high) <= most, difference.low > most or difference.high < -most
    return f"{HOLDS if inside else FAILS if outside else UNKNOWN} ({_format_interval(difference)}, allowed {most:.3f})"


def slower(one: ModelRow, other: ModelRow) -> str:
    """Whether `one` takes longer to play than `other`, every run of it than every run of the other."""
    first, second = one["cost"], other["cost"]
    ratio = f"{first['real_time_factor'] / second['real_time_factor']:.2f} of its time"
    if first["lowest"] > second["highest"]:
        return f"{HOLDS} ({ratio})"
    return f"{FAILS if first['highest'] < second['lowest'] else UNKNOWN} ({ratio})"


def rising(rows: Sequence[ModelRow]) -> str:
    """Whether the CLAP score rises from each to the next."""
    steps = [higher(after, before).partition(" (")[0] for before, after in pairwise(rows)]
    values = ", ".join(f"{row['clap']['score']['value']:.3f}" for row in rows)
    verdict = FAILS if FAILS in steps else UNKNOWN if UNKNOWN in steps else HOLDS
    return f"{verdict} ({values})"


def clap_difference(one: ModelRow, other: ModelRow) -> Interval:
    """The mean difference of the scores of clips that both have; no interval if there are fewer than two."""
    first, second = (np.array(row["clap_by_clip"], np.float64) for row in (one, other))
    both = np.isfinite(first) & np.isfinite(second)
    return difference(first[both], second[both]) if both.sum() > 1 else Interval(float("nan"))


def _format_interval(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
