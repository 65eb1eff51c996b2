"""Renders a sweep's report: curves, and metrics that compare trainings whose own losses cannot be compared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tinymusician.evaluate.report_tables import Table, format_interval
from tinymusician.evaluate.sweep_claims import CRITERIA, spread
from tinymusician.evaluate.sweep_results import Grid, SweepResult
from tinymusician.html_report import html_note, html_picture, html_table, html_text, page
from tinymusician.markdown import markdown_table
from tinymusician.plots import COLOURS, png, pyplot


def html_sweep_report(result: SweepResult) -> str:
    """The page."""
    parts = []
    for name, grid in result.grids.items():
        body = html_table(*criteria_table(grid)) + html_note(_SPREAD)
        body += html_picture(plot_curves(grid), f"losses over training, {name}")
        body += html_picture(plot_criteria(grid), f"metrics of the students, {name}")
        parts.append((name.capitalize(), body))
        if lines := diverged_trials(grid):
            parts.append((f"Diverged, {name}", html_text("\n".join(lines)) + html_note(_DIVERGED)))
        if name == "objectives":
            parts.append(("The paper's claims", html_table(*_claims_table(result)) + html_note(_CLAIMS)))
    parts.append(("Measurement", html_table(*_provenance_table(result.provenance))))
    return page(f"{result.recipe}: sweep", parts)


def markdown_sweep_report(result: SweepResult) -> str:
    """The tables in Markdown."""
    text = [f"# {result.recipe}: sweep\n"]
    text += [f"## {name}\n\n{markdown_table(*criteria_table(grid))}\n" for name, grid in result.grids.items()]
    for name, grid in result.grids.items():
        if lines := diverged_trials(grid):
            text.append(f"## Diverged, {name}\n\n" + "\n".join(lines) + "\n")
    if result.claims:
        text.append(f"## The paper's claims\n\n{markdown_table(*_claims_table(result))}\n")
    text.append(f"## Measurement\n\n{markdown_table(*_provenance_table(result.provenance))}\n")
    return "\n".join(text)


def criteria_table(grid: Grid) -> Table:
    """Every metric of every value, as the mean with the lowest and highest seed."""
    columns = ("", "test loss of its own", "fluctuation", *(criterion.description for criterion in CRITERIA))
    names = ("test_loss", "fluctuation", *(criterion.name for criterion in CRITERIA))
    rows = [
        (value, *(format_interval(spread([getattr(seed.final, name) for seed in seeds])) for name in names))
        for value, seeds in grid.items()
    ]
    return columns, rows


def diverged_trials(grid: Grid) -> list[str]:
    """One line for every training that diverged: which, the evaluated checkpoint, and the reason."""
    return [
        f"{value}, seed {seed.seed}, evaluated as of step {seed.curves.diverged.step}: {seed.curves.diverged.reason}"
        for value, seeds in grid.items()
        for seed in seeds
        if seed.curves.diverged is not None
    ]


def plot_curves(grid: Grid) -> bytes:
    """Training, validation and test loss and the test KL by step: one line per value, with the range of seeds."""
    panels = (
        ("training loss (its own)", "loss"),
        ("validation loss (its own)", "held_out/validation/loss"),
        ("test loss (its own)", "held_out/test/loss"),
        ("forward KL on test prompts", "held_out/test/kl"),
    )
    figure, axes = pyplot().subplots(2, 2, figsize=(11, 7), sharex=True, layout="constrained")
    for axis, (title, name) in zip(axes.flat, panels, strict=True):
        for number, (value, seeds) in enumerate(grid.items()):
            curves = [
                {row["step"]: row[name] for row in seed.curves.rows if row.get(name) is not None} for seed in seeds
            ]
            steps = sorted(set.intersection(*(set(curve) for curve in curves)))
            lines = np.array([[curve[step] for step in steps] for curve in curves])
            colour = COLOURS[number % len(COLOURS)]
            axis.plot(steps, lines.mean(axis=0), color=colour, label=value, marker="." if "held" in name else None)
            axis.fill_between(steps, lines.min(axis=0), lines.max(axis=0), color=colour, alpha=0.2)
        axis.set_title(title, fontsize="medium")
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return png(figure)


def plot_criteria(grid: Grid) -> bytes:
    """One panel per metric, one point per seed."""
    size = (13, 0.9 + 0.35 * len(grid))
    figure, axes = pyplot().subplots(1, len(CRITERIA), figsize=size, sharey=True, layout="constrained")
    for axis, criterion in zip(axes, CRITERIA, strict=True):
        for row, seeds in enumerate(grid.values()):
            values = [criterion.of(seed.final) for seed in seeds]
            axis.plot(values, [row] * len(values), "o", color=COLOURS[row % len(COLOURS)], alpha=0.7)
        better = "higher" if criterion.sign > 0 else "lower"
        axis.set_title(f"{criterion.description}\n({better} is better)", fontsize="x-small")
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(grid)), list(grid))
    axes[0].invert_yaxis()
    return png(figure)


_DIVERGED = "The loss was not finite; the last checkpoint before that is evaluated."
_SPREAD = (
    "Mean over seeds, with the lowest and the highest of them in brackets. Losses are each objective's own: only the "
    "metrics after them can be compared. Fluctuation is of the validation loss: 0 for a monotonic curve."
)
_CLAIMS = (
    "Holds: its worst seed is better than the best seed of all others. Does not hold: the worst seed of another is "
    "better than its best. Between the two, so few trainings cannot decide."
)


def _claims_table(result: SweepResult) -> Table:
    return ("stage_mixed", "here"), [(claim.statement, str(claim.result)) for claim in result.claims]


def _provenance_table(provenance: Mapping[str, str]) -> Table:
    return ("what", "value"), list(provenance.items())
