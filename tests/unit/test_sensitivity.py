"""Choosing precisions under a KL budget, against exhaustive search."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tinymusician.errors import PlanError
from tinymusician.quantize.sensitivity import GroupSensitivity, Table, choose, front

SIZES = {"float32": 32, "float16": 16, "int8": 9, "int4": 5}


def random_table(groups: int, seed: int) -> Table:
    """Groups of random size whose KL grows as bits fall."""
    random = np.random.default_rng(seed)
    table: dict[str, dict[Any, GroupSensitivity]] = {}
    for group in range(groups):
        size, harm = int(random.integers(100, 2000)), float(random.exponential())
        kls = {
            "float32": 0.0,
            "float16": 1e-6 * harm,
            "int8": 1e-3 * harm,
            "int4": 0.05 * harm * random.uniform(0.2, 5),
        }
        table[f"layers.{group}"] = {name: GroupSensitivity(size * SIZES[name], (kl, kl)) for name, kl in kls.items()}
    return table


def every_plan(table: Table) -> list[tuple[int, float]]:
    """Bytes and KL of all plans."""
    return [
        (sum(measure.size for measure in plan), sum(measure.kl for measure in plan))
        for plan in itertools.product(*[list(options.values()) for options in table.values()])
    ]


@pytest.mark.parametrize("seed", range(5))
def test_pareto_front_is_optimal(seed: int) -> None:
    table = random_table(5, seed)
    plans = every_plan(table)
    for _, size, kl in front(table):
        assert not [1 for other, harm in plans if other < size and harm < kl - 1e-12]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [1e-4, 0.01, 0.1, 1.0])
def test_plan_choice_is_within_budget_and_nearly_optimal(seed: int, budget: float) -> None:
    """A relaxation by prices misses at most one group's worth of bytes."""
    table = random_table(6, seed)
    best = choose(table, budget, lambda groups: sum(table[group][name].kl for group, name in groups.items()))
    smallest = min(size for size, kl in every_plan(table) if kl <= budget)
    largest_step = max(options["float32"].size - options["int4"].size for options in table.values())
    assert best.measured <= budget
    assert smallest <= best.size <= smallest + largest_step
    assert best.size == sum(table[group][name].size for group, name in best.groups.items())


def test_selection_uses_the_measured_joint_kl() -> None:
    """Where groups together do three times the harm of their sum, the plan leaves more bits."""
    table = random_table(6, 0)

    def alone(groups: dict[str, Any]) -> float:
        return sum(table[group][name].kl for group, name in groups.items())

    calm = choose(table, 0.1, alone)
    wild = choose(table, 0.1, lambda groups: 3 * alone(groups))
    assert wild.size > calm.size
    assert wild.measured <= 0.1


def test_budget_below_every_plan() -> None:
    with pytest.raises(PlanError, match=r"kl_budget 0\.1: no plan stays within it; the largest one has 0\.5"):
        choose(random_table(3, 0), 0.1, lambda groups: 0.5)
