"""The trainings of a sweep.

A training's key is a fingerprint of everything it depends on, so one that two grids or two sweeps share runs once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tinymusician.data.shards import fingerprint
from tinymusician.recipe import Grid, Recipe, parse_recipe

_OBJECTIVES = ("forward", "reverse", "fixed_bikl", "bikl", "switched_bikl", "stage_mixed")
_SKEWED = "stage_mixed"
Changes = Mapping[str, object]
"""Sections of a recipe that replace those of the sweep's recipe."""
GRIDS: dict[Grid, dict[str, Changes]] = {
    "objectives": {name: {"objective": {"name": name}} for name in _OBJECTIVES},
    "temperature": {
        "τ 1": {"temperature": {"initial": 1.0, "final": 1.0}},
        "τ 2": {"temperature": {"initial": 2.0, "final": 2.0}},
        "τ 2 to 1, along the sequence": {"temperature": {"initial": 2.0, "final": 1.0, "axis": "sequence"}},
        "τ 2 to 1, along training": {"temperature": {"initial": 2.0, "final": 1.0, "axis": "training"}},
    },
    "skew": {f"λ {skew:g}": {"objective": {"name": _SKEWED, "skew": skew}} for skew in (0.0, 0.1, 0.3, 0.5)},
    "switch": {f"switch at {at:g}": {"objective": {"name": _SKEWED, "switch": at}} for at in (0.25, 0.5, 0.75, 1.0)},
}
"""The settings that the paper's figures and summary compare; everything else is the recipe's."""

_DEPENDS_ON = ("teacher", "student", "sequences", "temperature", "objective", "training")


@dataclass(frozen=True)
class SweepTrial:
    """One training: a value of a grid, a seed, and the recipe that results."""

    grid: Grid
    value: str
    seed: int
    recipe: Recipe

    @property
    def facts(self) -> dict[str, object]:
        """Everything that its result depends on."""
        content = self.recipe.model_dump(mode="json")
        return {part: content[part] for part in _DEPENDS_ON}

    @property
    def model_id(self) -> str:
        """The id of its student as an evaluated model."""
        return f"trial {self.key}"

    @property
    def key(self) -> str:
        """Its name in the store; equal for trials of two grids that do not differ."""
        return fingerprint(self.facts)[:16]


def trials_of(recipe: Recipe) -> list[SweepTrial]:
    """All trainings of a recipe's sweep."""
    return [
        SweepTrial(grid, value, seed, _with_changes(recipe, changes, seed))
        for grid in recipe.sweep.over
        for value, changes in GRIDS[grid].items()
        for seed in range(recipe.training.seed, recipe.training.seed + recipe.sweep.seeds)
    ]


def _with_changes(recipe: Recipe, changes: Changes, seed: int) -> Recipe:
    content = recipe.model_dump(mode="json")
    content |= changes
    content["training"]["seed"] = seed
    return parse_recipe(content, recipe.name)
