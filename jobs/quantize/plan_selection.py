"""Chooses a bundle's precision plan: the recipe's, or the smallest one within its KL budget."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.quantize.workspace import QuantizationWorkspace
from tinymusician.errors import PlanError
from tinymusician.quantize.adaptive import PlanEvaluator, PlanMetrics
from tinymusician.quantize.precision import PrecisionPlan, load_plan
from tinymusician.quantize.results import ParetoPoint
from tinymusician.quantize.sensitivity import Table, choose
from tinymusician.settings import Precision

BUDGET_RESERVE = 0.9
"""The share of the KL budget that a plan may use on the sequences it is chosen on; others differ a little."""


@dataclass(frozen=True)
class PlanSelection:
    """The chosen plan, its metrics on the validation sequences, and the measurements that led to it."""

    plan: PrecisionPlan
    metrics: PlanMetrics
    table: Table | None
    points: list[ParetoPoint]


def choose_plan(workspace: QuantizationWorkspace, evaluator: PlanEvaluator) -> PlanSelection:
    """The recipe's plan, or the smallest one within its KL budget."""
    config, trials = workspace.config, workspace.trials(evaluator)
    measured = list(zip(trials, workspace.measure_or_load(evaluator, trials), strict=True))
    points = [ParetoPoint("float32", evaluator.whole, 0.0)]
    points += [_pareto_point(trial.plan.name, one) for trial, one in measured if trial.group is None and one]
    if config.plan != "adaptive":
        plan = load_plan(config.plan)
        check_groups(plan, evaluator)
        metrics = workspace.measure_chosen(evaluator, plan)
        others = [point for point in points if point.name != plan.name]
        return PlanSelection(plan, metrics, None, [*others, _pareto_point(plan.name, metrics)])
    table = evaluator.table({trial.group: one for trial, one in measured if trial.group is not None and one})
    base, candidates = workspace.base_plan(), {}

    def joint(groups: dict[str, Precision]) -> float:
        plan = base.model_copy(update={"name": "adaptive", "groups": groups})
        metrics = workspace.measure_chosen(evaluator, plan)
        candidates[tuple(groups.items())] = metrics
        workspace.context.run.report_progress("choice", len(candidates), len(candidates) + 1)
        print(f"choice: {metrics.size / 1e6:.1f} MB, worst codebook {max(metrics.by_codebook):.4g} nats", flush=True)
        return max(metrics.by_codebook)

    best = choose(table, BUDGET_RESERVE * config.kl_budget, joint)
    note = (
        f"chosen for {workspace.config.model} under a KL budget of {config.kl_budget:g} nats per code, "
        f"{best.measured:.4g} measured in the worst codebook"
    )
    plan = base.model_copy(update={"name": "adaptive", "groups": best.groups, "note": note})
    metrics = candidates[tuple(best.groups.items())]
    points += [_pareto_point("", candidate) for candidate in candidates.values()]
    return PlanSelection(plan, metrics, table, [*points, _pareto_point("adaptive", metrics)])


def check_groups(plan: PrecisionPlan, evaluator: PlanEvaluator) -> None:
    """Every group that a plan names must be in the model.

    Raises:
        PlanError: one is not.
    """
    for group in plan.groups:
        if group not in evaluator.groups and group != "lm_heads":
            raise PlanError(f"plan {plan.name}: groups.{group}: this model has {', '.join(evaluator.groups)}")


def _pareto_point(name: str, metrics: PlanMetrics) -> ParetoPoint:
    return ParetoPoint(name, metrics.size, max(metrics.by_codebook))
