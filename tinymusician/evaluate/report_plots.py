"""The plots of an evaluation's report, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from tinymusician.evaluate.bootstrap import Interval
from tinymusician.evaluate.results import ClipSetResult, ModelResult
from tinymusician.plots import COLOURS, png, pyplot
from tinymusician.training.metrics import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_front(models: Sequence[ModelResult]) -> bytes:
    """Size against FAD∞ (FAD or KAD where it could not be computed), and against the CLAP score."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for colour, model in zip(cycle(COLOURS), models, strict=False):
        one, size = model.distribution, model.size / 1e6
        _point(left, size, one.fad_infinity or one.fad or one.kad, model.label, colour)
        _point(right, size, one.clap_score, model.label, colour)
    distance = "FAD∞" if all(model.distribution.fad_infinity for model in models) else "FAD or KAD"
    for axis, label in ((left, f"{distance} (lower is better)"), (right, "CLAP score (higher is better)")):
        axis.set_xlabel("MB")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    return png(figure)


def plot_extrapolation(models: Sequence[ClipSetResult]) -> bytes:
    """FAD over 1/N with the line to infinitely many clips."""
    figure, axis = pyplot().subplots(figsize=(9, 5), layout="constrained")
    for colour, model in zip(cycle(COLOURS), models, strict=False):
        if not model.distribution.fad_points:
            continue
        x, y = np.array([[1 / count, value] for count, value in model.distribution.fad_points]).T
        axis.plot(x, y, "o", color=colour, label=model.label)
        axis.plot([0, x.max()], np.polyval(np.polyfit(x, y, 1), [0, x.max()]), color=colour, lw=1)
    axis.set_xlabel("1 / clips")
    axis.set_ylabel("FAD")
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return png(figure)


def plot_codebooks(models: Sequence[ModelResult]) -> bytes:
    """KL to the teacher by codebook, one group of bars per model."""
    rows = [(model.label, model.agreement.forward_by_codebook) for model in models if model.agreement]
    figure, axis = pyplot().subplots(figsize=(9, 4), layout="constrained")
    width = 0.8 / len(rows)
    for number, (colour, (label, values)) in enumerate(zip(cycle(COLOURS), rows, strict=False)):
        axis.bar(np.arange(len(values)) + number * width, values, width, color=colour, label=label)
    num_codebooks = len(rows[0][1])
    axis.set_xticks(np.arange(num_codebooks) + 0.4 - width / 2, [f"codebook {k + 1}" for k in range(num_codebooks)])
    axis.set_ylabel("KL(teacher‖model), nats per code")
    axis.grid(alpha=0.3, axis="y")
    axis.legend(fontsize="small")
    return png(figure)


def plot_cost(models: Sequence[ModelResult]) -> bytes:
    """Real-time factor, memory and size as bars."""
    costs = {model.label: model.cost for model in models if model.cost}
    figure, axes = pyplot().subplots(1, 3, figsize=(11, 0.6 + 0.5 * len(costs)), sharey=True, layout="constrained")
    panels = (
        ("real-time factor", [one.real_time_factor for one in costs.values()]),
        ("peak memory (MB)", [one.memory / 1e6 for one in costs.values()]),
        ("size (MB)", [sum(one.sizes.values()) / 1e6 for one in costs.values()]),
    )
    colours = [colour for _, colour in zip(costs, cycle(COLOURS), strict=False)]
    for axis, (title, values) in zip(axes, panels, strict=True):
        axis.barh(list(costs), values, color=colours)
        axis.set_title(title, fontsize="medium")
        axis.grid(alpha=0.3, axis="x")
    axes[0].invert_yaxis()
    return png(figure)


def plot_training(curves: Mapping[str, Sequence[Row]]) -> bytes:
    """Training loss and held-out KL over the steps, one line per student."""
    figure, axes = pyplot().subplots(1, 2, figsize=(11, 4), layout="constrained")
    panels = (("training loss, each its own", "loss"), ("held-out forward KL to the teacher", "held_out/kl"))
    for axis, (title, name) in zip(axes, panels, strict=True):
        for colour, (label, rows) in zip(cycle(COLOURS), curves.items(), strict=False):
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, label=label, marker="." if "held" in name else None)
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    return png(figure)


def _point(axis: Axes, x: float, value: Interval | None, label: str, colour: str) -> None:
    if value is None:
        return
    error = None
    if value.low is not None and value.high is not None:
        error = [[max(0, value.value - value.low)], [max(0, value.high - value.value)]]
    axis.errorbar([x], [value.value], error, fmt="o", color=colour, capsize=3)
    axis.annotate(label, (x, value.value), (6, 4), textcoords="offset points", fontsize="small")
