"""Plots the lineage of an artifact from left to right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from tinymusician.artifacts.lineage import LineageEdge, provenance_facts
from tinymusician.artifacts.manifest import Manifest
from tinymusician.errors import RequestError
from tinymusician.plots import COLOURS, pyplot

_KINDS = (".svg", ".png", ".pdf")
_COLUMN, _ROW, _BOX = 3.2, 1.1, (2.7, 0.85)
"""Sizes in inches."""


def draw(subject: Manifest, steps: Sequence[LineageEdge], manifests: Mapping[str, Manifest], path: Path) -> None:
    """Plot the edges around an artifact, which is highlighted, to a file of one of `_KINDS`.

    Raises:
        RequestError: another kind of file is requested, or it cannot be written.
    """
    if path.suffix not in _KINDS:
        raise RequestError(f"picture {path}: allowed are files that end in {', '.join(_KINDS)}")
    positions = placed(subject.reference, steps)
    width, height = (1 + max(place[axis] for place in positions.values()) for axis in (0, 1))
    figure, axes = pyplot().subplots(figsize=(width * _COLUMN, height * _ROW), layout="constrained")
    for name, (column, row) in positions.items():
        _box(
            axes, column * _COLUMN, -row * _ROW, _label(name, manifests.get(name)), is_subject=name == subject.reference
        )
    for step in steps:
        (column, row), (to_column, to_row) = positions[step.source], positions[step.derived]
        start = (column * _COLUMN + _BOX[0] / 2, -row * _ROW)
        end = (to_column * _COLUMN - _BOX[0] / 2, -to_row * _ROW)
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": COLOURS[7]})
    axes.set(xlim=(-_COLUMN / 2, (width - 0.5) * _COLUMN), ylim=(-(height - 0.5) * _ROW, _ROW / 2), aspect="equal")
    axes.axis("off")
    try:
        figure.savefig(path)
    except OSError as error:
        raise RequestError(f"picture {path}: cannot be written: {error.strerror or error}") from None
    finally:
        pyplot().close(figure)


def placed(reference: str, steps: Sequence[LineageEdge]) -> dict[str, tuple[int, int]]:
    """Column and row of every name: to the right of its sources, below the names before it."""
    columns = dict.fromkeys([name for step in steps for name in (step.source, step.derived)] or [reference], 0)
    for _ in columns:  # as many rounds as the longest way can have steps
        for step in steps:
            columns[step.derived] = max(columns[step.derived], columns[step.source] + 1)
    rows = dict.fromkeys(columns.values(), 0)
    positions = {}
    for name, column in columns.items():
        positions[name] = (column, rows[column])
        rows[column] += 1
    return positions


def _box(axes: Any, x: float, y: float, text: str, is_subject: bool) -> None:
    edge = {"edgecolor": COLOURS[0 if is_subject else 7], "linewidth": 2.5 if is_subject else 1, "facecolor": "white"}
    patch = pyplot().Rectangle((x - _BOX[0] / 2, y - _BOX[1] / 2), *_BOX, **edge)
    axes.add_patch(patch)
    axes.text(x, y, text, ha="center", va="center", fontsize=7)


def _label(name: str, manifest: Manifest | None) -> str:
    if manifest is None:
        return f"{fill(name[-72:], 36)}\nfrom outside"
    about = provenance_facts(manifest)
    code = about.get("code", "").partition(",")[0]
    lines = [f"{manifest.name}@{manifest.digest[:8]}, {manifest.kind}", about.get("run", "")]
    lines += [f"recipe {about.get('recipe', '?')}, code {code or '?'}"]
    lines += [f"data {about['data']}"] if "data" in about else []
    return "\n".join(line[:44] for line in lines if line)
