"""Measures the sensitivity of a bundle's groups to low precision, and finds the smallest plan within a KL budget.

Sensitivity is measured, one group and precision at a time, as the KL from the float32 decoder on forced sequences.
Choosing is a multiple-choice knapsack: of every group one precision, the fewest bytes, the KL at most the budget. It is
relaxed by a price λ of a nat in bytes (Lagrange): each group takes the precision that minimizes bytes + λ·KL, and the
plans of all prices form the front. The relaxation assumes that the KLs of groups add up, which is nearly so; therefore
the joint KL of candidates on the front is measured, and the smallest candidate within the budget is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tinymusician.errors import PlanError
from tinymusician.settings import Precision


@dataclass(frozen=True)
class GroupSensitivity:
    """One group in one precision: its bytes in the bundle, and the KL that it alone causes, by codebook (nats)."""

    size: int
    by_codebook: tuple[float, ...]

    @property
    def kl(self) -> float:
        """The mean over codebooks."""
        return sum(self.by_codebook) / len(self.by_codebook)


Table = Mapping[str, Mapping[Precision, GroupSensitivity]]
"""Groups to precisions to measurements; every group has `float32`, whose KL is 0."""


@dataclass(frozen=True)
class PlanChoice:
    """A precision for every group, its size in bytes, and its expected (summed) and measured (joint) KL in nats."""

    groups: dict[str, Precision]
    size: int
    expected: float
    measured: float


def at_price(table: Table, price: float) -> tuple[dict[str, Precision], int, float]:
    """The best precision of every group where a nat costs `price` bytes: groups, bytes, and the sum of their KLs."""
    chosen: dict[str, Precision] = {}
    for group, options in table.items():
        chosen[group] = min(options, key=lambda name: (options[name].size + price * options[name].kl, options[name].kl))
    size = sum(table[group][precision].size for group, precision in chosen.items())
    return chosen, size, sum(table[group][precision].kl for group, precision in chosen.items())


def prices(table: Table) -> list[float]:
    """Every price at which some group changes its precision, in ascending order."""
    values = {0.0}
    for options in table.values():
        for one in options.values():
            for other in options.values():
                if other.kl < one.kl and other.size > one.size:
                    values.add((other.size - one.size) / (one.kl - other.kl))
    return sorted(values)


def front(table: Table) -> list[tuple[dict[str, Precision], int, float]]:
    """The plans of the relaxation that no other one beats in both bytes and expected KL, smallest first."""
    plans: list[tuple[dict[str, Precision], int, float]] = []
    for price in prices(table):
        plan = at_price(table, price * (1 + 1e-9))
        if not plans or plan[0] != plans[-1][0]:
            plans.append(plan)
    return plans


def choose(table: Table, budget: float, joint_kl: Callable[[dict[str, Precision]], float]) -> PlanChoice:
    """The smallest plan of the front whose joint KL, measured by `joint_kl`, is at most `budget`.

    The search is a bisection, since KL falls along the front as bytes rise.

    Raises:
        PlanError: even the largest plan exceeds the budget.
    """
    plans = front(table)
    low, high, best = 0, len(plans) - 1, None
    while low <= high:
        middle = (low + high) // 2
        groups, size, expected = plans[middle]
        measured = joint_kl(groups)
        if measured <= budget:
            best, high = PlanChoice(groups, size, expected, measured), middle - 1
        else:
            low = middle + 1
    if best is None:
        raise PlanError(
            f"kl_budget {budget:g}: no plan stays within it; the largest one has {measured:.4g} nats per code"
        )
    return best
