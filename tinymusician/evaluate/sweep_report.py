"""What a sweep shows: curves and one yardstick for trainings whose own losses cannot be compared with each other.

By grid and value, the trainings of all seeds: `curves` (rows of metrics) and `final` (figures of the student). Spreads
are the lowest and highest seed: three trainings are too few for an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinymusician.evaluate.bootstrap import Interval
from tinymusician.evaluate.report import Table, shown
from tinymusician.html_report import html_note, html_picture, html_table, html_text, page
from tinymusician.markdown import markdown_table
from tinymusician.plots import COLOURS, png, pyplot

Figures = dict[str, Any]
YARDSTICK = {
    "kl": ("forward KL on test prompts", -1),
    "reverse_kl": ("reverse KL on test prompts", -1),
    "kad": ("KAD of what it plays", -1),
    "clap": ("CLAP score of what it plays", 1),
    "surprise": ("teacher's surprise at what it plays", -1),
}
"""What every student is judged by, whatever it was trained on; the sign says which way is better."""


def fluctuation(values: Sequence[float]) -> float:
    """How much a curve goes up and down beside its way: (Σ|v_{i+1} - v_i| - |v_n - v_0|) / |v_n - v_0|.

    0 for a curve that only falls; 1 for one that loses on the way as much as it gains from end to end. It has no unit,
    so curves of different losses may be compared by it.
    """
    array = np.asarray(values, np.float64)
    way, whole = np.abs(np.diff(array)).sum(), abs(array[-1] - array[0])
    return float((way - whole) / whole) if whole > 0 else float("inf")


def spread(values: Sequence[float]) -> Interval:
    """The mean over seeds, with the lowest and highest of them."""
    array = np.asarray(values, np.float64)
    return (
        Interval(float(array.mean()), float(array.min()), float(array.max())) if len(array) > 1 else Interval(array[0])
    )


def verdict(runs: Sequence[float], others: Mapping[str, Sequence[float]], sign: int) -> str:
    """Whether one value of a grid is the best: by all seeds of all, by none, or not to be told.

    It is if its worst seed is better than the best seed of every other; it is not if the worst seed of some other is
    better than its best. One training each tells nothing.
    """
    if min(len(values) for values in (runs, *others.values())) < 2:
        return "cannot be told at this scale"
    signed = sign * np.asarray(runs)
    signed_others = {name: sign * np.asarray(values) for name, values in others.items()}
    if all(signed.min() > values.max() for values in signed_others.values()):
        return "holds"
    better = [name for name, values in signed_others.items() if values.min() > signed.max()]
    return f"does not hold: better is {', '.join(better)}" if better else "cannot be told at this scale"


def claims(grid: Figures, champion: str) -> list[tuple[str, str]]:
    """What the paper says of its objective (figures 2 and 3), held against what came out here."""

    def values(name: str, take: Any) -> list[float]:
        return [take(seed) for seed in grid[name]]

    def judged(take: Any, sign: int) -> str:
        others = {name: values(name, take) for name in grid if name != champion}
        return verdict(values(champion, take), others, sign)

    results = [
        ("its validation loss fluctuates least", judged(lambda seed: seed["final"]["fluctuation"], -1)),
        (
            "its test loss is the lowest (each by its own objective, so this says little)",
            judged(lambda seed: seed["final"]["test_loss"], -1),
        ),
    ]
    for name, (description, sign) in YARDSTICK.items():
        results.append((f"best by {description}", judged(lambda seed, name=name: seed["final"][name], sign)))
    return results


def yardstick_table(grid: Figures) -> Table:
    """Every value by every figure, mean with lowest and highest seed."""
    columns = ("", "test loss of its own", "fluctuation", *(description for description, _ in YARDSTICK.values()))
    names = ("test_loss", "fluctuation", *YARDSTICK)
    rows = [
        (value, *(shown(spread([seed["final"][name] for seed in seeds])._asdict()) for name in names))
        for value, seeds in grid.items()
    ]
    return columns, rows


def diverged(grid: Figures) -> list[str]:
    """Of every training whose loss was no number any more: which, from which checkpoint it is judged, and why."""
    return [
        f"{value}, seed {seed['seed']}, judged as of step {row['step']}: {row['diverged']}"
        for value, seeds in grid.items()
        for seed in seeds
        for row in seed["curves"]
        if "diverged" in row
    ]


def html_study(name: str, content: Figures) -> str:
    """The page."""
    parts = []
    for grid, values in content["grids"].items():
        body = html_table(*yardstick_table(values)) + html_note(_SPREAD)
        body += html_picture(plot_curves(values), f"losses over training, {grid}")
        body += html_picture(plot_yardstick(values), f"yardstick figures, {grid}")
        parts.append((grid.capitalize(), body))
        if lost := diverged(values):
            parts.append((f"Diverged, {grid}", html_text("\n".join(lost)) + html_note(_DIVERGED)))
        if grid == "objectives":
            parts.append(
                ("The paper's claims", html_table(("stage_mixed", "here"), content["claims"]) + html_note(_CLAIM))
            )
    parts.append(("How this was measured", html_table(("what", "how"), list(content["how"].items()))))
    return page(f"{name}: sweep", parts)


def markdown_study(name: str, content: Figures) -> str:
    """The tables in Markdown."""
    text = [f"# {name}: sweep\n"]
    losses = {grid: diverged(values) for grid, values in content["grids"].items()}
    text += [f"## {grid}\n\n{markdown_table(*yardstick_table(values))}\n" for grid, values in content["grids"].items()]
    text += [f"## Diverged, {grid}\n\n" + "\n".join(lost) + "\n" for grid, lost in losses.items() if lost]
    if content["claims"]:
        text.append(f"## The paper's claims\n\n{markdown_table(('stage_mixed', 'here'), content['claims'])}\n")
    text.append(f"## How this was measured\n\n{markdown_table(('what', 'how'), list(content['how'].items()))}\n")
    return "\n".join(text)


def plot_curves(grid: Figures) -> bytes:
    """Training, validation and test loss and the test KL over the steps, a line a value, with the spread of seeds."""
    panels = (
        ("training loss (its own)", "loss"),
        ("validation loss (its own)", "held_out/validation/loss"),
        ("test loss (its own)", "held_out/test/loss"),
        ("forward KL on test prompts", "held_out/test/kl"),
    )
    figure, axes = pyplot().subplots(2, 2, figsize=(11, 7), sharex=True, layout="constrained")
    for axis, (title, name) in zip(axes.flat, panels, strict=True):
        for number, (value, seeds) in enumerate(grid.items()):
            curves = [{row["step"]: row[name] for row in seed["curves"] if row.get(name) is not None} for seed in seeds]
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


def plot_yardstick(grid: Figures) -> bytes:
    """A panel a figure, a point a seed."""
    figure, axes = pyplot().subplots(
        1, len(YARDSTICK), figsize=(13, 0.9 + 0.35 * len(grid)), sharey=True, layout="constrained"
    )
    for axis, (name, (description, sign)) in zip(axes, YARDSTICK.items(), strict=True):
        for place, seeds in enumerate(grid.values()):
            values = [seed["final"][name] for seed in seeds]
            axis.plot(values, [place] * len(values), "o", color=COLOURS[place % len(COLOURS)], alpha=0.7)
        axis.set_title(f"{description}\n({'higher' if sign > 0 else 'lower'} is better)", fontsize="x-small")
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(grid)), list(grid))
    axes[0].invert_yaxis()
    return png(figure)


_DIVERGED = "Their loss was no finite number any more; what is judged is their last checkpoint before that."
_SPREAD = (
    "Mean over seeds, with the lowest and the highest of them in brackets. Losses are each objective's own: only the "
    "figures after them can be compared. Fluctuation is of the validation loss: 0 for a curve that only falls."
)
_CLAIM = (
    "Holds: the worst of its seeds is better than the best of all others'. Does not hold: the worst seed of another is "
    "better than its best. Between the two it cannot be told from so few trainings."
)
