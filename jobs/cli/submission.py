"""Validates a recipe, submits the job, follows it and prints the result: what all `tmctl submit` commands share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from jobs.cli.follow import follow
from jobs.cli.output import emit, print_recipe
from jobs.registry import JobKind
from tinymusician.artifacts.retry import RetryingStore
from tinymusician.artifacts.run_state import State
from tinymusician.artifacts.run_summary import RunSummary, summarize
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import RunError, TransientStoreError

_STORE_SECONDS = 600.0
"""Seconds for which a run is watched while its store does not respond: as long as jobs try."""


@dataclass(frozen=True)
class SubmitOptions:
    """The options of every `tmctl submit` command."""

    recipe: str
    overrides: list[str] | None
    cluster: str | None
    workers: int | None
    gpus: int | None
    wait: bool
    dry_run: bool
    resume: str | None
    name: str | None
    json: bool
    on: str | None = None


def submit_and_follow(kind: JobKind, options: SubmitOptions, sets: Sequence[str] = ()) -> None:
    """Submit a job; `sets` are the overrides (KEY=VALUE) that a command's own options stand for.

    Raises:
        TinyMusicianError: the recipe, the store or the cluster cannot be used.
        typer.Exit: the run failed or was stopped.
    """
    from jobs.launch.prepare import prepare, runs_here
    from tinymusician.artifacts.open import open_store

    if options.gpus and options.workers not in (None, options.gpus):
        raise RunError(f"--workers {options.workers} --gpus {options.gpus}: a worker has one GPU; give one of them")
    if options.on and not options.dry_run:
        raise RunError(f"--on {options.on}: is for planning; add --dry-run")
    workers = options.gpus or options.workers
    device = ["training.device=gpu"] if options.gpus else []
    store, overrides = open_store(), [*(options.overrides or []), *device, *sets]
    recipe = prepare(store, kind, options.recipe, overrides, options.cluster, options.resume)
    if options.dry_run:
        print_recipe(recipe, options.json, workers or 1, kind, options.on)
        return
    from jobs.launch.submit import submit

    run = submit(store, kind, recipe, workers, options.cluster, options.name, options.resume)
    if not isinstance(store, RetryingStore):
        run = RunStore(RetryingStore(store, _STORE_SECONDS), run.id)
    if not runs_here(options.cluster) and store.url.startswith("file:"):
        print(f"warning: store {store.url}: every node of the cluster must see this folder", file=sys.stderr)
    if not options.json:
        print(f"run {run.id}: submitted to {run.record().cluster}, stored in {store.url}", file=sys.stderr)
    state = _follow(run, options.json) if options.wait else "PENDING"
    summary = summarize(run)
    emit(summary.facts(), options.json, _result_text(run, summary) if options.wait else run.id)
    if state in {"FAILED", "STOPPED"}:
        raise typer.Exit(1)


def _follow(run: RunStore, quiet: bool) -> State:
    """Watch a run to its end. Ctrl-C ends the watch, not the run.

    Raises:
        RunError: the store did not respond for too long; the run goes on.
    """
    try:
        return follow(run, quiet)
    except KeyboardInterrupt:
        print(f"run {run.id} goes on: `tmctl logs --follow {run.id}`, `tmctl stop {run.id}`", file=sys.stderr)
        raise
    except TransientStoreError as error:
        raise RunError(f"{error}; run {run.id} goes on: `tmctl logs --follow {run.id}` watches it") from error


def _result_text(run: RunStore, summary: RunSummary) -> str:
    lines, metrics = [f"run {run.id}: {summary.state} {summary.message}".rstrip()], summary.metrics
    if summary.artifact:
        lines.append(f"artifact {summary.artifact}")
    if "kl_initial" in metrics:
        lines.append(
            f"held-out KL to the teacher {metrics['kl_initial']:.4f} → {metrics['kl_final']:.4f} nats per code"
        )
    if summary.state != "SUCCEEDED":
        return "\n".join(lines)
    if summary.kind == "evaluate" and metrics:
        lines += [_metrics_line(name, values) for name, values in metrics.items()]
        lines += _evaluation_notes(run)
    if "share_of_float32" in metrics:
        lines.append(
            f"plan {metrics['plan']}: {metrics['size'] / 1e6:.1f} MB, {metrics['share_of_float32']:.3f} of float32, "
            f"KL {max(metrics['kl_per_codebook']):.4g} nats per code in the worst codebook"
        )
    if summary.kind == "understand" and metrics:
        lines.append(
            f"accuracy {metrics['accuracy']:.3f} on the hard questions, {metrics['circular']:.3f} in all rotations; "
            f"bundle {metrics['bundle']}: {metrics['bundle_accuracy']:.3f}, {metrics['bundle_size'] / 1e6:.1f} MB"
        )
    if summary.kind in ("evaluate", "quantize", "sweep", "understand") and metrics:
        lines.append(f"report {run.report_location()} in the store")
    return "\n".join(lines)


def _evaluation_notes(run: RunStore) -> list[str]:
    """What the metrics were measured with, and why some of them could not be."""
    from tinymusician.evaluate.results import EvaluationResult

    result = run.report(EvaluationResult)
    embedding, real = result.provenance.embedding, result.provenance.real_clips
    reference = f"{real} real clips" if real else str(result.provenance.reference["reference"])
    measured = f"distances from {reference} by {embedding.get('model') or embedding['kind']}"
    if result.provenance.unreadable:
        measured += f"; {len(result.provenance.unreadable)} could not be read"
    notes = [f"{clips.label}: {note}" for clips in result.sets for note in clips.distribution.notes]
    unread = [f"{one.label}: {reason}" for one in result.folders for reason in one.audio.unreadable]
    return [measured, *notes, *unread]


def _metrics_line(model: str, metrics: dict[str, float | None]) -> str:
    names = {
        "fad": "FAD",
        "fad_infinity": "FAD∞",
        "kad": "KAD",
        "clap": "CLAP",
        "clap_shuffled": "shuffled",
        "kl": "KL",
    }
    parts = [f"{shown} {metrics[name]:.3f}" for name, shown in names.items() if metrics.get(name) is not None]
    return f"{model:<20} {'  '.join(parts)}"
