"""Release gates: what a release must retain of its baseline before an alias may point at it.

The defaults are the paper's summary: 93 % of the CLAP score, a FAD within 9.5 %, 45 % of the size. A bundle that
answers questions has no baseline: its gates are on the benchmark that it was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tinymusician.settings import QuestionGatesConfig, ReleaseGatesConfig


class GateResult(NamedTuple):
    """The result of one gate."""

    gate: str
    passed: bool
    said: str


def check_gates(
    metrics: Mapping[str, object], baseline: Mapping[str, object], gates: ReleaseGatesConfig
) -> list[GateResult]:
    """Every gate on the metrics of a bundle and of its baseline. A metric that was not measured fails its gate."""
    return [
        _at_least("clap", _value(metrics, "clap"), _value(baseline, "clap"), gates.clap),
        _at_most("fad", _value(metrics, "fad"), _value(baseline, "fad"), 1 + gates.fad),
        _at_most("size", _value(metrics, "bytes"), _value(baseline, "bytes"), gates.size),
        _degenerate(metrics.get("degenerate"), gates.degenerate),
        _quiet(_value(metrics, "quiet"), _value(baseline, "quiet"), gates.quiet),
    ]


def is_benchmarked(metrics: Mapping[str, object]) -> bool:
    """Whether an artifact's own metrics are those of a bundle that answers questions."""
    return "bundle_accuracy" in metrics


def check_question_gates(metrics: Mapping[str, object], gates: QuestionGatesConfig) -> list[GateResult]:
    """Every gate on the benchmark of a bundle that answers questions. A metric that was not measured fails its gate."""
    bundle, model = _value(metrics, "bundle_accuracy"), _value(metrics, "accuracy")
    loss = None if bundle is None or model is None else max(0.0, model - bundle)
    return [
        _within("accuracy", bundle, gates.accuracy, is_minimum=True),
        _within("circular", _value(metrics, "bundle_circular"), gates.circular, is_minimum=True),
        _within("loss", loss, gates.loss, is_minimum=False),
        _within("missing controls", _value(metrics, "controls_missing"), 0, is_minimum=False),
        _within("controls", _value(metrics, "controls_not_at_chance"), gates.controls, is_minimum=False),
    ]


def describe_failures(results: list[GateResult]) -> str:
    """The gates that failed, in one line; empty if none did."""
    return "; ".join(f"{one.gate}: {one.said}" for one in results if not one.passed)


def _value(figures: Mapping[str, object], name: str) -> float | None:
    """A metric; signed documents contain fractions as text."""
    value = figures.get(name)
    try:
        return float(value) if isinstance(value, str | int | float) else None
    except ValueError:
        return None


def _within(gate: str, value: float | None, limit: float, is_minimum: bool) -> GateResult:
    if value is None:
        return GateResult(gate, False, "was not measured")
    passed = value >= limit if is_minimum else value <= limit
    return GateResult(gate, passed, f"{value:.4g}; at {'least' if is_minimum else 'most'} {limit:g}")


def _at_least(gate: str, value: float | None, base: float | None, share: float) -> GateResult:
    if value is None or not base:
        return GateResult(gate, False, "was not measured")
    return GateResult(
        gate,
        value >= share * base,
        f"{value:.4g} is {value / base:.3f} of the baseline's {base:.4g}; at least {share:g}",
    )


def _at_most(gate: str, value: float | None, base: float | None, share: float) -> GateResult:
    if value is None or not base:
        return GateResult(gate, False, "was not measured")
    return GateResult(
        gate,
        value <= share * base,
        f"{value:.4g} is {value / base:.3f} of the baseline's {base:.4g}; at most {share:g}",
    )


def _degenerate(counts: object, most: int) -> GateResult:
    if not isinstance(counts, int):
        return GateResult("degenerate", False, "was not measured")
    return GateResult("degenerate", counts <= most, f"{counts} clips; at most {most}")


def _quiet(value: float | None, base: float | None, increase: float) -> GateResult:
    if value is None or base is None:
        return GateResult("quiet", False, "was not measured")
    text = f"{value:.3f} of all frames are quiet, {base:.3f} of the baseline's; at most {increase:g} more"
    return GateResult("quiet", value <= base + increase, text)
