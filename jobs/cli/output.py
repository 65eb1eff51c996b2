"""The output of the command line: JSON for scripts, tables and a progress bar, plain lines without a terminal."""

from __future__ import annotations

import json
import sys
import time

from pydantic import BaseModel

from jobs.registry import JobKind
from tinymusician.artifacts.run_state import ENDED, State
from tinymusician.artifacts.run_summary import summarize
from tinymusician.artifacts.runs import RunStore
from tinymusician.recipe import Recipe

_POLL_SECONDS = 1.0
_PLAIN_SECONDS = 15.0


def emit(value: object, as_json: bool, text: str) -> None:
    """Print `value` as one JSON document, or `text`, flushed at once."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str) if as_json else text, flush=True)


def warn(message: str) -> None:
    """Print a one-line warning on standard error."""
    print(f"warning: {' '.join(message.split())}", file=sys.stderr)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A plain table with aligned columns."""
    widths = [max(len(line[i]) for line in [columns, *rows]) for i in range(len(columns))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [columns, *rows]
    ]
    return "\n".join(lines)


def print_recipe(recipe: Recipe, as_json: bool, workers: int = 1, kind: JobKind = "distill") -> None:
    """Print every value of a recipe with its meaning, and the estimated cost of a run."""
    from jobs.launch.estimate import distill_cost, pretrain_cost, quantize_cost

    if kind == "pretrain":
        figures = pretrain_cost(recipe)
    else:
        figures = quantize_cost(recipe) if kind == "quantize" else distill_cost(recipe, workers)
    if as_json:
        print(json.dumps({**recipe.model_dump(mode="json"), "cost": figures}, indent=2, ensure_ascii=False))
        return
    print(f"{recipe.name}: {recipe.description}\n")
    print_settings(recipe)
    print("\ncost")
    for name, value in figures.items():
        print(f"  {name.replace('_', ' ')}: {value}")


def print_settings(config: BaseModel) -> None:
    """Print every value of a configuration with its meaning."""
    rows = _setting_rows(config, "")
    width = max(len(f"{name} = {value}") for name, value, _ in rows)
    for name, value, meaning in rows:
        print(f"  {f'{name} = {value}':<{min(width, 60)}}  {meaning}".rstrip())


def follow(run: RunStore, quiet: bool) -> State:
    """Watch a run until it ends, with a bar on a terminal or a line now and then; returns its last state."""
    if quiet or not sys.stderr.isatty():
        return _follow_plainly(run, quiet)
    return _follow_with_bar(run)


def _follow_plainly(run: RunStore, quiet: bool) -> State:
    shown, printed = "", 0.0
    while True:
        summary = summarize(run)
        line = f"{summary.state} {summary.stage or 'starting'} {summary.steps_done}"
        due = time.monotonic() - printed > _PLAIN_SECONDS or summary.state in ENDED
        if not quiet and line != shown and due:
            print(f"{line}{_latest_kl(run)}", file=sys.stderr, flush=True)
            shown, printed = line, time.monotonic()
        if summary.state in ENDED:
            return summary.state
        _pause(run)


def _follow_with_bar(run: RunStore) -> State:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar, stage = bars.add_task("starting", total=None), ""
        while True:
            summary = summarize(run)
            if (summary.stage or "") != stage:
                stage = summary.stage or ""
                bars.reset(bar, total=summary.steps)
            description = f"{stage or 'starting'}{_latest_kl(run)}"
            bars.update(bar, description=description, completed=summary.step, total=summary.steps)
            if summary.state in ENDED:
                return summary.state
            _pause(run)


def _pause(run: RunStore) -> None:
    """Wait a moment; then ask the cluster, in case the job died before it could write its state."""
    from jobs.launch.submit import reconcile

    time.sleep(_POLL_SECONDS)
    reconcile(run)


def _latest_kl(run: RunStore) -> str:
    from tinymusician.training.metrics import read_metrics

    rows = [row for row in read_metrics(run.store, run.metrics_key()) if "held_out/kl" in row]
    return f"  held-out KL {rows[-1]['held_out/kl']:.4f}" if rows else ""


def _setting_rows(section: BaseModel, prefix: str) -> list[tuple[str, object, str]]:
    """Each value of a configuration as (dotted name, value, meaning)."""
    rows: list[tuple[str, object, str]] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if hasattr(type(value), "model_fields"):
            rows += _setting_rows(value, f"{prefix}{name}.")
        elif prefix or name not in {"name", "description"}:
            rows.append(
                (f"{prefix}{name}", list(value) if isinstance(value, tuple) else value, field.description or "")
            )
    return rows
