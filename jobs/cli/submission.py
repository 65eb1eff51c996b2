"""Validates a recipe, submits the job, follows it and prints the result: what all `tmctl submit` commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from jobs.cli.output import emit, follow, print_recipe
from jobs.registry import JobKind
from tinymusician.artifacts.store import Store
from tinymusician.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class SubmitOptions:
    """The options of every `tmctl submit` command."""

    recipe: str
    overrides: list[str] | None
    cluster: str | None
    workers: int | None
    wait: bool
    dry_run: bool
    resume: str | None
    name: str | None
    json: bool


def submit_and_follow(kind: JobKind, options: SubmitOptions, sets: Sequence[str] = ()) -> None:
    """Submit a job; `sets` are the overrides (KEY=VALUE) that a command's own options stand for.

    Raises:
        TinyMusicianError: the recipe, the store or the cluster cannot be used.
        typer.Exit: the run failed or was stopped.
    """
    from jobs.launch.cluster import CLUSTER_VARIABLE, is_here
    from jobs.launch.validate import check, check_overrides, with_local_paths
    from tinymusician.artifacts.open import open_store
    from tinymusician.artifacts.run_summary import summary

    overrides = [*(options.overrides or []), *sets]
    recipe, store = load_recipe(options.recipe, tuple(overrides)), open_store()
    if options.resume:
        recipe = resumed_recipe(store, options.resume, recipe, tuple(overrides))
    check_overrides(kind, overrides, recipe)
    address = options.cluster or os.environ.get(CLUSTER_VARIABLE)
    here = address is None or is_here(address)
    recipe = with_local_paths(recipe) if here else recipe
    check(kind, recipe, here)
    if not options.resume:
        from jobs.launch.validate import with_loaded_plan
        from jobs.worker.model_refs import resolve

        recipe = resolve(store, with_loaded_plan(recipe) if kind == "quantize" else recipe, kind, here)
    if options.dry_run:
        print_recipe(recipe, options.json, options.workers or 1, kind)
        return
    from jobs.launch.submit import submit

    run = submit(store, kind, recipe, options.workers, options.cluster, options.name, options.resume)
    if not here and store.url.startswith("file:"):
        print(f"warning: store {store.url}: every node of the cluster must see this folder", file=sys.stderr)
    if not options.json:
        print(f"run {run.id}: submitted to {run.record().cluster}, stored in {store.url}", file=sys.stderr)
    state = follow(run, quiet=options.json) if options.wait else "PENDING"
    emit(summary(run), options.json, _result_text(run.id, summary(run)) if options.wait else run.id)
    if state in {"FAILED", "STOPPED"}:
        raise typer.Exit(1)


def resumed_recipe(store: Store, run: str, given: Recipe, overrides: tuple[str, ...]) -> Recipe:
    """The recipe of a run that is resumed: its own, with overrides of RESUMABLE_KEYS only.

    Raises:
        RunError: the run does not exist, or another key or recipe is given.
    """
    from jobs.launch.submit import RESUMABLE_KEYS
    from tinymusician.artifacts.runs import RunStore
    from tinymusician.errors import RunError
    from tinymusician.recipe import overridden, parse_recipe

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
    recipe = parse_recipe(overridden(content, overrides), run)
    if recipe.name != given.name:
        raise RunError(f"run {run!r}: is of recipe {recipe.name}, not {given.name}")
    return recipe


def _result_text(run: str, facts: dict[str, object]) -> str:
    lines = [f"run {run}: {facts['state']} {facts['message'] or ''}".rstrip()]
    if facts["artifact"]:
        lines.append(f"artifact {facts['artifact']}")
    metrics = facts["metrics"]
    if isinstance(metrics, dict) and "kl_initial" in metrics:
        lines.append(f"held-out KL to the teacher {metrics['kl_initial']:.4f} → {metrics['kl_final']:.4f} nats a code")
    if facts["kind"] == "evaluate" and isinstance(metrics, dict):
        lines += [_figures_line(name, figures) for name, figures in metrics.items()]
        lines.append(f"report runs/{run}/report.html in the store")
    if facts["kind"] == "sweep" and isinstance(metrics, dict):
        lines.append(f"report runs/{run}/report.html in the store")
    if isinstance(metrics, dict) and "share_of_float32" in metrics:
        lines.append(
            f"plan {metrics['plan']}: {metrics['size'] / 1e6:.1f} MB, {metrics['share_of_float32']:.3f} of float32, "
            f"KL {max(metrics['kl_per_codebook']):.4g} nats a code in the worst codebook"
        )
        lines.append(f"report runs/{run}/report.html in the store")
    return "\n".join(lines)


def _figures_line(model: str, figures: dict[str, float | None]) -> str:
    names = {"fad_infinity": "FAD∞", "kad": "KAD", "clap": "CLAP", "clap_shuffled": "shuffled", "kl": "KL"}
    parts = [f"{shown} {figures[name]:.3f}" for name, shown in names.items() if figures.get(name) is not None]
    return f"{model:<20} {'  '.join(parts)}"
