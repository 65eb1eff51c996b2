"""Decides claims about two models: a claim holds, does not hold, or cannot be decided.

Distances are of sets, so they differ where their 95 % intervals do not overlap. CLAP scores are of the same captions,
so they differ where the interval of the paired difference excludes 0. Times differ where all runs of one are slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise

import numpy as np

from tinymusician.config_model import Document
from tinymusician.evaluate.bootstrap import Interval, paired_difference
from tinymusician.evaluate.results import InferenceCost

Scores = Sequence[float]
"""One CLAP score per prompt, NaN where a clip is not finite."""


class Verdict(StrEnum):
    """The result of a test. To find no difference does not prove that there is none."""

    HOLDS = "holds"
    FAILS = "does not hold"
    NO_DIFFERENCE = "no difference was found"
    UNDECIDED = "undecided at this scale"


class ClaimResult(Document):
    """A verdict, with the numbers it is based on."""

    verdict: Verdict
    evidence: str = ""

    def __str__(self) -> str:
        """The verdict with its evidence in parentheses."""
        return f"{self.verdict} ({self.evidence})" if self.evidence else str(self.verdict)

    def with_evidence(self, more: str) -> ClaimResult:
        """The same verdict with one more number."""
        return self.model_copy(update={"evidence": f"{self.evidence}, {more}" if self.evidence else more})


class Claim(Document):
    """A claim, where it comes from (such as `table 3`), and its result here."""

    source: str
    statement: str
    result: ClaimResult


def lower(one: Interval | None, other: Interval | None) -> ClaimResult:
    """Whether the distance `one` is lower than `other`."""
    if one is None or other is None or None in (one.low, one.high, other.low, other.high):
        return ClaimResult(verdict=Verdict.UNDECIDED)
    assert one.low is not None
    assert one.high is not None
    assert other.low is not None
    assert other.high is not None
    evidence = f"{one.value:.3f} and {other.value:.3f}"
    return ClaimResult(verdict=_decide(one.high < other.low, other.high < one.low), evidence=evidence)


def higher(one: Scores, other: Scores) -> ClaimResult:
    """Whether the CLAP scores `one` are higher than `other`, paired by prompt."""
    difference = paired_difference(one, other)
    if difference is None or difference.low is None or difference.high is None:
        return ClaimResult(verdict=Verdict.UNDECIDED)
    verdict = _decide(difference.low > 0, difference.high < 0)
    return ClaimResult(verdict=verdict, evidence=_format_difference(difference))


def not_worse(worse: ClaimResult) -> ClaimResult:
    """The result of "is not worse", given the result of "is worse"."""
    opposite = {
        Verdict.HOLDS: Verdict.FAILS,
        Verdict.FAILS: Verdict.HOLDS,
        Verdict.UNDECIDED: Verdict.NO_DIFFERENCE if worse.evidence else Verdict.UNDECIDED,
    }
    return ClaimResult(verdict=opposite[worse.verdict], evidence=worse.evidence)


def within_tolerance(one: Scores, other: Scores, share: float) -> ClaimResult:
    """Whether the CLAP scores `one` differ from `other` by at most a share of the mean of `other`."""
    difference = paired_difference(one, other)
    if difference is None or difference.low is None or difference.high is None:
        return ClaimResult(verdict=Verdict.UNDECIDED)
    tolerance = share * abs(float(np.nanmean(other)))
    inside = max(-difference.low, difference.high) <= tolerance
    outside = difference.low > tolerance or difference.high < -tolerance
    evidence = f"{_format_difference(difference)}, allowed {tolerance:.3f}"
    return ClaimResult(verdict=_decide(inside, outside), evidence=evidence)


def at_most(share: float, limit: float) -> ClaimResult:
    """Whether a share is at most a limit."""
    return ClaimResult(verdict=_decide(share <= limit, share > limit), evidence=f"{share:.3f}")


def slower(one: InferenceCost | None, other: InferenceCost | None) -> ClaimResult:
    """Whether `one` is slower than `other`: every run of it than every run of the other."""
    if one is None or other is None:
        return ClaimResult(verdict=Verdict.UNDECIDED)
    evidence = f"{one.real_time_factor / other.real_time_factor:.2f} of its time"
    return ClaimResult(verdict=_decide(one.lowest > other.highest, one.highest < other.lowest), evidence=evidence)


def rising(rows: Sequence[Scores]) -> ClaimResult:
    """Whether the CLAP score rises from each model to the next."""
    steps = [higher(after, before).verdict for before, after in pairwise(rows)]
    evidence = ", ".join(f"{np.nanmean(scores):.3f}" for scores in rows)
    verdict = _decide(all(step == Verdict.HOLDS for step in steps), Verdict.FAILS in steps)
    return ClaimResult(verdict=verdict, evidence=evidence)


def _decide(holds: bool, fails: bool) -> Verdict:
    return Verdict.HOLDS if holds else Verdict.FAILS if fails else Verdict.UNDECIDED


def _format_difference(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
