"""What a finished evaluation shows: a page that people open, and the same tables in Markdown.

The figures come as the JSON that the evaluation keeps: `value`, `low` and `high` for whatever has an interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinymusician.evaluate.audio import Wave
from tinymusician.html_report import (
    html_note,
    html_picture,
    html_player,
    html_side_by_side,
    html_table,
    html_text,
    page,
)
from tinymusician.markdown import markdown_table
from tinymusician.plots import COLOURS, png, pyplot

Figures = dict[str, Any]


@dataclass(frozen=True)
class AudioSample:
    """A clip to listen to, encoded as FLAC."""

    name: str
    wave: Wave
    rate: int
    flac: bytes


def html_report(
    name: str,
    content: Figures,
    listened: Sequence[tuple[str, list[AudioSample]]],
    curves: Figures,
    sensitivities: Sequence[tuple[str, bytes]],
) -> str:
    """The page. `curves` are the metrics of students by name, `sensitivities` pictures of bundles with their names."""
    models = content["models"]
    played = {one: result for one, result in models.items() if "bytes" in result}
    parts = [
        ("Summary", html_table(*summary_table(models)) + html_note(_SUMMARY)),
        ("Less the first model", html_table(*difference_table(played)) + html_note(_DIFFERENCE)),
        ("Listen", "".join(_players(prompt, clips) for prompt, clips in listened)),
        ("Size against quality", html_picture(plot_front(played), "size of each model against its FAD and CLAP score")),
    ]
    if any(result["fad_points"] for result in played.values()):
        picture = html_picture(plot_extrapolation(played), "FAD over one over the number of clips")
        parts.append(("FAD and the number of clips", picture))
    if any(result["agreement"] for result in played.values()):
        picture = html_picture(plot_codebooks(played), "KL to the teacher by codebook")
        parts.append(("Agreement with the teacher", html_table(*agreement_table(played)) + picture))
    if any(result["labels"] for result in played.values()):
        parts.append(("What a classifier hears", html_table(*label_table(models))))
    if any(result["cost"] for result in played.values()):
        picture = html_picture(plot_cost(played), "what playing costs")
        parts.append(("Cost", html_table(*cost_table(played)) + picture + html_note(_COST)))
    if curves:
        picture = html_picture(plot_training(curves), "losses over training steps")
        parts.append(("How the students were trained", picture + html_note(_CURVES)))
    if sensitivities:
        pictures = [html_note(one) + html_picture(picture, f"sensitivity of {one}") for one, picture in sensitivities]
        parts.append(("How much each group minds few bits", "".join(pictures)))
    parts.append(("Degenerate clips", html_table(*degenerate_table(played))))
    parts.append(("The clips furthest from the reference", _worst(content["worst"])))
    if notes := [f"{one}: {note}" for one, result in played.items() for note in result["notes"]]:
        parts.append(("What could not be told", html_text("\n".join(notes))))
    parts.append(("How this was measured", html_table(("what", "how"), _provenance_rows(content["how"]))))
    return page(f"{name}: evaluation", parts)


def markdown_report(name: str, content: Figures) -> str:
    """The tables in Markdown."""
    models = content["models"]
    played = {one: result for one, result in models.items() if "bytes" in result}
    tables = [
        ("Summary", summary_table(models)),
        ("Less the first model", difference_table(played)),
        ("Agreement with the teacher", agreement_table(played)),
        ("What a classifier hears", label_table(models)),
        ("Cost", cost_table(played)),
        ("Degenerate clips", degenerate_table(played)),
        ("How this was measured", (("what", "how"), _provenance_rows(content["how"]))),
    ]
    notes = [f"- {one}: {note}" for one, result in played.items() for note in result["notes"]]
    text = [f"# {name}: evaluation\n"]
    text += [f"## {title}\n\n{markdown_table(*table)}\n" for title, table in tables if table[1]]
    text += ["## What could not be told\n\n" + "\n".join(notes) + "\n"] if notes else []
    return "\n".join(text)


Table = tuple[tuple[str, ...], list[tuple[Any, ...]]]


def summary_table(models: Figures) -> Table:
    """Everything at a glance."""
    columns = ("model", "MB", "FAD", "FAD∞", "KAD", "CLAP", "CLAP, shuffled", "KL to teacher", "degenerate", "RTF")
    rows = []
    for name, result in models.items():
        clap = result["clap"]
        shuffled = "—" if clap["shuffled"] is None else f"{clap['shuffled']:.3f} (p {clap['p_shuffled']:.1g})"
        rows.append(
            (
                name,
                f"{result['bytes'] / 1e6:.1f}" if result.get("bytes") else "—",
                shown(result.get("fad")),
                shown(result.get("fad_infinity")),
                shown(result.get("kad")),
                shown(clap["score"]),
                shuffled,
                shown((result.get("agreement") or {}).get("forward")),
                f"{result['degenerate']['any']} of {result['clips']}" if result.get("degenerate") else "—",
                f"{result['cost']['real_time_factor']:.2f}" if result.get("cost") else "—",
            )
        )
    return columns, rows


def difference_table(played: Figures) -> Table:
    """CLAP scores clip by clip, and distances, less those of the first model."""
    (first, base), *others = played.items()
    rows = []
    for name, result in others:
        distances = [_less(result[key], base[key]) for key in ("fad", "fad_infinity", "kad")]
        rows.append((name, shown(result["clap_less_first"], signed=True), *distances))
    return (f"less {first}", "CLAP", "FAD", "FAD∞", "KAD"), rows


def agreement_table(played: Figures) -> Table:
    """Nats a code, and shares."""
    columns: tuple[str, ...] = ("model", "KL(teacher‖model)", "KL(model‖teacher)", "top-1", "KL without guidance")
    columns += ("teacher's surprise at its own clips", "variety of its codes")
    names = ("forward", "reverse", "top_1", "with_text", "surprise", "variety")
    agreements = [(name, result["agreement"]) for name, result in played.items() if result["agreement"]]
    return columns, [(name, *(shown(one[key]) for key in names)) for name, one in agreements]


def label_table(models: Figures) -> Table:
    """Of each question that the classifier answers."""
    rows = [
        (name, question, *(shown(one[key]) for key in ("forward", "reverse", "agreement")))
        for name, result in models.items()
        for question, one in result.get("labels", {}).items()
    ]
    return ("model", "question", "KL(real‖played)", "KL(played‖real)", "same likeliest answer"), rows


def cost_table(played: Figures) -> Table:
    """As in the paper's table 4."""
    columns: tuple[str, ...] = (
        "model",
        "s a clip",
        "RTF (lowest to highest)",
        "processors",
        "peak memory MB",
        "GPU memory MB",
    )
    columns += ("GFLOP a second", "J a second", "components MB")
    rows = []
    for name, one in ((name, result["cost"]) for name, result in played.items() if result["cost"]):
        spread = f"{one['real_time_factor']:.3f} ({one['lowest']:.3f} to {one['highest']:.3f})"
        rows.append(
            (
                name,
                f"{one['seconds']:.2f} of {one['length']:g}",
                spread,
                f"{one['cpu']:.2f}",
                f"{one['memory'] / 1e6:.0f}",
                _number(one["gpu_memory"], 1e6),
                _number(one["flops"], 1e9),
                _number(one["joules"], 1),
                ", ".join(f"{part} {size / 1e6:.1f}" for part, size in one["sizes"].items()),
            )
        )
    return columns, rows


def degenerate_table(played: Figures) -> Table:
    """How many clips have each fault."""
    kinds = list(next(iter(played.values()))["degenerate"])
    rows = [(name, result["clips"], *result["degenerate"].values()) for name, result in played.items()]
    return ("model", "clips", *kinds), rows


def shown(figure: Figures | None, signed: bool = False) -> str:
    """A figure with its interval."""
    if figure is None or figure["value"] is None:
        return "—"
    form = "+.3g" if signed else ".3g" if abs(figure["value"]) >= 1 else ".3f"
    if figure["low"] is None:
        return f"{figure['value']:{form}}"
    return f"{figure['value']:{form}} [{figure['low']:{form}}, {figure['high']:{form}}]"


def plot_front(played: Figures) -> bytes:
    """Size against FAD∞ (FAD where that could not be told) and against the CLAP score."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for colour, (name, result) in zip(_colours(played), played.items(), strict=True):
        size = result["bytes"] / 1e6
        _point(left, size, result["fad_infinity"] or result["fad"] or result["kad"], name, colour)
        _point(right, size, result["clap"]["score"], name, colour)
    lower = "FAD∞" if all(result["fad_infinity"] for result in played.values()) else "FAD or KAD"
    for axis, label in ((left, f"{lower} (lower is better)"), (right, "CLAP score (higher is better)")):
        axis.set_xlabel("MB")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    return png(figure)


def plot_extrapolation(played: Figures) -> bytes:
    """FAD over 1/N with the line to infinitely many clips."""
    figure, axis = pyplot().subplots(figsize=(9, 5), layout="constrained")
    for colour, (name, result) in zip(_colours(played), played.items(), strict=True):
        if not result["fad_points"]:
            continue
        x, y = np.array([[1 / count, value] for count, value in result["fad_points"]]).T
        axis.plot(x, y, "o", color=colour, label=name)
        axis.plot([0, x.max()], np.polyval(np.polyfit(x, y, 1), [0, x.max()]), color=colour, lw=1)
    axis.set_xlabel("1 / clips")
    axis.set_ylabel("FAD")
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return png(figure)


def plot_codebooks(played: Figures) -> bytes:
    """KL to the teacher by codebook, a group of bars a model."""
    agreements = {name: result["agreement"] for name, result in played.items() if result["agreement"]}
    figure, axis = pyplot().subplots(figsize=(9, 4), layout="constrained")
    width = 0.8 / len(agreements)
    for number, (colour, (name, one)) in enumerate(zip(_colours(agreements), agreements.items(), strict=True)):
        values = one["forward_by_codebook"]
        axis.bar(np.arange(len(values)) + number * width, values, width, color=colour, label=name)
    num_codebooks = len(next(iter(agreements.values()))["forward_by_codebook"])
    axis.set_xticks(np.arange(num_codebooks) + 0.4 - width / 2, [f"codebook {k + 1}" for k in range(num_codebooks)])
    axis.set_ylabel("KL(teacher‖model), nats a code")
    axis.grid(alpha=0.3, axis="y")
    axis.legend(fontsize="small")
    return png(figure)


def plot_cost(played: Figures) -> bytes:
    """Real-time factor, memory and size, bars beside each other."""
    costs = {name: result["cost"] for name, result in played.items() if result["cost"]}
    figure, axes = pyplot().subplots(1, 3, figsize=(11, 0.6 + 0.5 * len(costs)), sharey=True, layout="constrained")
    panels = (
        ("real-time factor", [one["real_time_factor"] for one in costs.values()]),
        ("peak memory (MB)", [one["memory"] / 1e6 for one in costs.values()]),
        ("size (MB)", [sum(one["sizes"].values()) / 1e6 for one in costs.values()]),
    )
    for axis, (title, values) in zip(axes, panels, strict=True):
        axis.barh(list(costs), values, color=_colours(costs))
        axis.set_title(title, fontsize="medium")
        axis.grid(alpha=0.3, axis="x")
    axes[0].invert_yaxis()
    return png(figure)


def plot_training(curves: Figures) -> bytes:
    """Training loss and held-out KL over the steps, a line a student."""
    figure, axes = pyplot().subplots(1, 2, figsize=(11, 4), layout="constrained")
    panels = (("training loss, each its own", "loss"), ("held-out forward KL to the teacher", "held_out/kl"))
    for axis, (title, name) in zip(axes, panels, strict=True):
        for colour, (one, rows) in zip(_colours(curves), curves.items(), strict=True):
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, label=one, marker="." if "held" in name else None)
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    return png(figure)


def plot_spectrogram(wave: Wave, rate: int) -> bytes:
    """A small spectrogram, 80 dB from its loudest, up to 5 kHz or half the rate."""
    figure, axis = pyplot().subplots(figsize=(3.4, 1.5), layout="constrained")
    with np.errstate(divide="ignore"):
        axis.specgram(wave + 1e-9, NFFT=1024, Fs=rate, noverlap=768, cmap="magma", vmin=-140, vmax=-40)
    axis.set_ylim(0, min(5000, rate / 2))
    axis.set_axis_off()
    return png(figure, 80)


_SUMMARY = (
    "Values with 95 % intervals over clips. FAD and KAD are distances from the real clips: lower is nearer; FAD is "
    "biased by the number of clips, FAD∞ is extrapolated. CLAP is the cosine of clip and prompt: higher is nearer, and "
    "only as far as it lies above the score of shuffled prompts. `real, coded` are the real clips behind the teacher's "
    "codec: nobody who plays through it can be expected to be nearer. RTF is seconds of work a second of music."
)
_DIFFERENCE = (
    "CLAP: paired, clip by clip; an interval without 0 is a difference. Distances: the difference of the values."
)
_CURVES = (
    "From the runs that made them. Losses of different objectives or targets cannot be compared with each other, and "
    "neither can the KL of a student of the guided distribution with that of a conditional one."
)
_COST = (
    "One clip at a time, in a process of its own on this machine, with nothing else of this job running. Memory is the "
    "most that opening the model and playing took, beside the libraries."
)


def _players(prompt: str, clips: list[AudioSample]) -> str:
    players = [html_player(one.flac, "audio/flac", one.name, plot_spectrogram(one.wave, one.rate)) for one in clips]
    return html_note(prompt) + html_side_by_side(players)


def _worst(worst: Figures) -> str:
    rows = [(name, one["clip"], one["fad"], one["prompt"]) for name, clips in worst.items() for one in clips]
    return html_table(("model", "clip", "FAD of the clip", "prompt"), rows)


def _provenance_rows(how: Figures) -> list[tuple[str, str]]:
    def line(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {line(one)}" for name, one in value.items()) or "nothing"
        return "none" if value is None else str(value)

    return [(name, line(value)) for name, value in how.items()]


def _less(figure: Figures | None, base: Figures | None) -> str:
    if figure is None or base is None:
        return "—"
    return f"{figure['value'] - base['value']:+.3g}"


def _number(value: float | None, unit: float) -> str:
    return "—" if value is None else f"{value / unit:.1f}"


def _point(axis: Any, x: float, figure: Figures | None, name: str, colour: str) -> None:
    if figure is None or figure["value"] is None:
        return
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    error = None if low is None else [[max(0, value - low)], [max(0, high - value)]]
    axis.errorbar([x], [value], error, fmt="o", color=colour, capsize=3)
    axis.annotate(name, (x, value), (6, 4), textcoords="offset points", fontsize="small")


def _colours(things: Any) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(things))]
