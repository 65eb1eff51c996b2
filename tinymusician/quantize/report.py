"""The plots of a finished compression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinymusician.plots import png, pyplot
from tinymusician.quantize.sensitivity import Table, front
from tinymusician.recipe import Precision

FLOOR = 1e-9
"""What a KL of nothing is drawn as on a logarithmic axis."""
_COLOURS = {"float16": "tab:green", "int8": "tab:blue", "int4": "tab:red"}


@dataclass(frozen=True)
class ParetoPoint:
    """A plan on the plane of size (bytes of the graphs) and KL (nats a code, of its worst codebook)."""

    name: str
    size: int
    kl: float


def plot_sensitivity(table: Table) -> bytes:
    """A PNG: the KL of every group alone, in each precision, and by codebook in the coarsest one."""
    groups = [group for group in table if len(table[group]) > 1]
    precisions: list[Precision] = [name for name in _ORDER if any(name in table[group] for group in groups)]
    figure, (above, below) = pyplot().subplots(2, 1, figsize=(11, 8), sharex=True, layout="constrained")
    for precision in precisions:
        kls = [max(FLOOR, table[group][precision].kl) if precision in table[group] else np.nan for group in groups]
        above.semilogy(kls, "o-", color=_COLOURS[precision], label=precision)
    above.set_title("KL of one group alone (nats a code, mean of the codebooks)")
    coarse = precisions[-1]
    num_codebooks = len(next(iter(table.values()))["float32"].by_codebook)
    for book in range(num_codebooks):
        kls = [
            max(FLOOR, table[group][coarse].by_codebook[book]) if coarse in table[group] else np.nan for group in groups
        ]
        below.semilogy(kls, ".-", label=f"codebook {book + 1}")
    below.set_title(f"by codebook, in {coarse}")
    below.set_xticks(range(len(groups)), groups, rotation=60, ha="right")
    for axis in (above, below):
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    return png(figure)


def plot_front(table: Table | None, points: Sequence[ParetoPoint], budget: float | None) -> bytes:
    """A PNG: size against KL, the front of the relaxation where groups were measured, and every plan on it."""
    figure, axis = pyplot().subplots(figsize=(11, 6), layout="constrained")
    if table is not None:
        rest = max((point.size for point in points), default=0) - sum(one["float32"].size for one in table.values())
        plans = front(table)
        axis.plot(
            [(size + rest) / 1e6 for _, size, _ in plans],
            [max(FLOOR, kl) for _, _, kl in plans],
            color="0.6",
            label="front: the groups alone summed up, mean of the codebooks",
        )
    for number, point in enumerate(sorted(points, key=lambda point: point.size)):
        place = (point.size / 1e6, max(FLOOR, point.kl))
        axis.plot(*place, "o")
        axis.annotate(point.name, place, (7, 5 if number % 2 else -11), textcoords="offset points")
    if budget is not None:
        axis.axhline(budget, color="tab:red", linestyle=":", label="budget")
    axis.set_yscale("log")
    axis.set_xlabel("fused graphs (MB)")
    axis.set_ylabel("KL from float32, worst codebook (nats a code)")
    axis.set_title("size against KL")
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="small")
    return png(figure)


_ORDER: tuple[Precision, ...] = ("float16", "int8", "int4")
