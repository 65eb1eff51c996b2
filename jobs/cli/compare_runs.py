"""`tmctl runs compare`: how runs differ in their settings and results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tinymusician.artifacts.run_state import RunRecord
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import NotFoundError
from tinymusician.evaluate.bootstrap import Interval
from tinymusician.evaluate.report_tables import format_interval
from tinymusician.evaluate.results import ClipSetResult, EvaluationResult, ModelResult
from tinymusician.html_report import html_note, html_picture, html_table, page
from tinymusician.json_types import JsonObject

Rows = list[list[str]]


@dataclass(frozen=True)
class ComparedRun:
    """A run's id and state, its settings and results as text by name, and its training metrics by step."""

    id: str
    state: str
    settings: Mapping[str, str]
    results: Mapping[str, str]
    curves: Sequence[JsonObject]


def read_run(run: RunStore) -> ComparedRun:
    """Read what is compared of a run.

    Raises:
        RunError: there is no such run.
    """
    return ComparedRun(run.id, run.status().state, _settings(run.record()), _results(run), run.metrics())


def differing_settings(runs: Sequence[ComparedRun]) -> Rows:
    """A row for each setting that is not equal in all runs: its name and the value in each run."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [[name, *(run.settings.get(name, "") for run in runs)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def result_rows(runs: Sequence[ComparedRun]) -> Rows:
    """A row for each result: its name and the value of each run, empty where a run lacks it."""
    names = dict.fromkeys(name for run in runs for name in run.results)
    return [["state", *(run.state for run in runs)]] + [
        [name, *(run.results.get(name, "") for run in runs)] for name in names
    ]


def comparison_page(runs: Sequence[ComparedRun]) -> str:
    """One HTML file with both tables and the training curves."""
    columns = ["", *(run.id for run in runs)]
    settings = differing_settings(runs)
    equal = html_note("All settings are equal.")
    sections = [("Settings that differ", html_table(columns, settings) if settings else equal)]
    sections += [("Results", html_table(columns, result_rows(runs)))]
    if curves := {run.id: run.curves for run in runs if run.curves}:
        from tinymusician.evaluate.report_plots import plot_training

        sections += [("Training", html_picture(plot_training(curves), "loss and held-out KL by training step"))]
    return page("Comparison of runs", sections)


def _settings(record: RunRecord) -> dict[str, str]:
    facts = {"kind": record.kind, "workers": record.workers, "commit": record.git.get("commit", "")[:12]}
    facts |= {f"version of {name}": version for name, version in record.versions.items()}
    return {name: str(value) for name, value in [*_flat(record.recipe), *facts.items()]}


def _flat(section: JsonObject, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _results(run: RunStore) -> dict[str, str]:
    if run.record().kind == "evaluate":
        try:
            result = run.report(EvaluationResult)
        except NotFoundError:
            return {}
        rows = [(model.label, name, text) for model in result.models for name, text in _model_results(model)]
        rows += [(folder.label, name, text) for folder in result.folders for name, text in _set_results(folder)]
        return {f"{label}: {name}": text for label, name, text in rows}
    return dict(_run_results(run.status().metrics))


def _run_results(metrics: JsonObject) -> Iterator[tuple[str, str]]:
    for name, value in _flat(metrics):
        interval = metrics.get(f"{name}_interval")
        if isinstance(value, int | float):
            yield name, f"{value:.4g}" if interval is None else format_interval(Interval(value, *interval))


def _model_results(model: ModelResult) -> Iterator[tuple[str, str]]:
    yield from _set_results(model)
    yield "KL to the teacher", format_interval(model.agreement.forward if model.agreement else None)
    yield "MB", f"{model.size / 1e6:.1f}"


def _set_results(clips: ClipSetResult) -> Iterator[tuple[str, str]]:
    one = clips.distribution
    yield from (
        (name, format_interval(value))
        for name, value in (("FAD", one.fad), ("FAD∞", one.fad_infinity), ("KAD", one.kad))
    )
    yield "CLAP score", format_interval(one.clap_score)
    yield "quiet frames", f"{clips.degenerate.quiet:.1%}"
    yield "degenerate clips", str(clips.degenerate.clips)
