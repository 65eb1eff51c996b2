"""Turns a recipe's name and overrides into the resolved recipe that a run is submitted with."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import partial

from jobs.launch.cluster import is_here
from jobs.launch.inputs import locate_inputs
from jobs.launch.ray_environment import configured_address
from jobs.launch.submit import RESUMABLE_KEYS
from jobs.launch.validate import check, check_overrides, with_loaded_plan
from jobs.registry import JobKind
from jobs.worker.model_refs import resolve
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import Store
from tinymusician.data.prompts import load_prompts, texts_of
from tinymusician.errors import RecipeError, RunError
from tinymusician.inputs import is_on_nodes
from tinymusician.models.shape import sampling_defaults
from tinymusician.recipe import Recipe, apply_overrides, load_recipe, parse_recipe


def prepare(
    store: Store, kind: JobKind, recipe_name: str, overrides: Sequence[str], cluster: str | None, resume: str | None
) -> Recipe:
    """Load and validate a recipe, and locate its inputs. Paths of this machine stay: `upload_inputs` imports them.

    Raises:
        TinyMusicianError: the recipe, the store or a model cannot be used; `resume` is not a run of this recipe.
    """
    if any(one.startswith("training.steps=") for one in overrides):
        overrides = ["training.epochs=null", *overrides]  # unless these say otherwise, too
    recipe = load_recipe(recipe_name, tuple(overrides))
    if resume:
        recipe = resumed_recipe(store, resume, recipe, overrides)
    else:
        recipe = locate_inputs(store, recipe, kind, partial(print, file=sys.stderr))
        recipe = with_steps(with_sampling_defaults(recipe))
    check_overrides(kind, list(overrides), recipe)
    check(kind, recipe, runs_here(cluster))
    if resume:
        return recipe
    return resolve(store, with_loaded_plan(recipe) if kind in ("quantize", "pipeline") else recipe, kind)


def with_sampling_defaults(recipe: Recipe) -> Recipe:
    """The recipe with the sampling settings that its teacher brings, where the recipe has none."""
    teacher = recipe.teacher
    defaults = {
        key: value for key, value in sampling_defaults(teacher.model).items() if key not in teacher.model_fields_set
    }
    content = recipe.model_dump(mode="json")
    content["teacher"] |= defaults
    return parse_recipe(content, recipe.name) if defaults else recipe


def with_steps(recipe: Recipe) -> Recipe:
    """The recipe with the steps of its `training.epochs`, if it has any.

    Raises:
        RecipeError: the sequences include clips, whose number is not known before they are encoded.
        DataError: the prompts cannot be read.
    """
    training, sequences = recipe.training, recipe.sequences
    if training.epochs is None:
        return recipe
    if sequences.clips is not None:
        raise RecipeError(
            "training.epochs: the number of sequences of sequences.clips is not known; give training.steps"
        )
    if is_on_nodes(sequences.prompts):
        raise RecipeError(
            f"training.epochs: the number of prompts in {sequences.prompts} is not known here; give training.steps"
        )
    count = len(texts_of(load_prompts(sequences.prompts), "train")) * sequences.samples_per_prompt
    steps = math.ceil(training.epochs * count / (training.microbatches * training.batch_size))
    content = recipe.model_dump(mode="json")
    content["training"]["steps"] = steps
    return parse_recipe(content, recipe.name)


def runs_here(cluster: str | None) -> bool:
    """Whether the job will run on this machine: without an address, or with a local one."""
    address = configured_address(cluster)
    return address is None or is_here(address)


def resumed_recipe(store: Store, run: str, given: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe of a run that is resumed: its own, with overrides of RESUMABLE_KEYS only.

    Raises:
        RunError: the run does not exist, or another key or recipe is given.
    """
    content = RunStore(store, run).record().recipe
    if content["signals"].get("top_k") and any(override.startswith("signals.source=") for override in overrides):
        raise RunError(
            f"run {run!r}: was trained on top-k signals (signals.top_k), which only signals.source=cached provides"
        )
    for override in overrides:
        if override.partition("=")[0] not in RESUMABLE_KEYS:
            raise RunError(
                f"--set {override}: run {run!r} resumes with its stored recipe, of which only "
                f"{', '.join(RESUMABLE_KEYS)} may change; start a new run for anything else"
            )
    recipe = parse_recipe(apply_overrides(content, tuple(overrides)), run)
    if recipe.name != given.name:
        raise RunError(f"run {run!r}: is of recipe {recipe.name}, not {given.name}")
    return recipe
