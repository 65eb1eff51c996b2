"""Turns a recipe's name and overrides into the resolved recipe that a run is submitted with."""

from __future__ import annotations

import os
from collections.abc import Sequence

from jobs.launch.cluster import CLUSTER_VARIABLE, is_here
from jobs.launch.submit import RESUMABLE_KEYS
from jobs.launch.validate import check, check_overrides, with_loaded_plan, with_local_paths
from jobs.registry import JobKind
from jobs.worker.model_refs import resolve
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import Store
from tinymusician.errors import RunError
from tinymusician.recipe import Recipe, load_recipe, overridden, parse_recipe


def prepare(
    store: Store, kind: JobKind, recipe_name: str, overrides: Sequence[str], cluster: str | None, resume: str | None
) -> Recipe:
    """Load and validate a recipe, and resolve the models that it names.

    Raises:
        TinyMusicianError: the recipe, the store or a model cannot be used; `resume` is not a run of this recipe.
    """
    recipe = load_recipe(recipe_name, tuple(overrides))
    if resume:
        recipe = resumed_recipe(store, resume, recipe, overrides)
    check_overrides(kind, list(overrides), recipe)
    is_local = runs_here(cluster)
    recipe = with_local_paths(recipe) if is_local else recipe
    check(kind, recipe, is_local)
    if resume:
        return recipe
    return resolve(store, with_loaded_plan(recipe) if kind == "quantize" else recipe, kind, is_local)


def runs_here(cluster: str | None) -> bool:
    """Whether the job will run on this machine: without an address, or with a local one."""
    address = cluster or os.environ.get(CLUSTER_VARIABLE)
    return address is None or is_here(address)


def resumed_recipe(store: Store, run: str, given: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe of a run that is resumed: its own, with overrides of RESUMABLE_KEYS only.

    Raises:
        RunError: the run does not exist, or another key or recipe is given.
    """
    content = RunStore(store, run).record().recipe
    if content["signals"].get("top_k") and any(override.startswith("signals.source=") for override in overrides):
        raise RunError(
            f"run {run!r}: learns from the likeliest codes alone (signals.top_k), which no other source gives"
        )
    for override in overrides:
        if override.partition("=")[0] not in RESUMABLE_KEYS:
            raise RunError(
                f"--set {override}: run {run!r} goes on with its own recipe, of which only {', '.join(RESUMABLE_KEYS)} "
                "may change; start a new run for anything else"
            )
    recipe = parse_recipe(overridden(content, tuple(overrides)), run)
    if recipe.name != given.name:
        raise RunError(f"run {run!r}: is of recipe {recipe.name}, not {given.name}")
    return recipe
