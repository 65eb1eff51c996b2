"""Renders a quantization's report: an HTML page with its plots. It only reads a `QuantizationResult`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from tinymusician.html_report import html_picture, html_table, html_text, page
from tinymusician.plots import png, pyplot
from tinymusician.quantize.results import ParetoPoint, ParityReport, QuantizationResult
from tinymusician.quantize.sensitivity import Table, front
from tinymusician.settings import Precision

MIN_KL = 1e-9
"""A KL of zero on a logarithmic axis."""
_COLOURS = {"float16": "tab:green", "int8": "tab:blue", "int4": "tab:red"}
_ORDER: tuple[Precision, ...] = ("float16", "int8", "int4")


def html_report(result: QuantizationResult) -> str:
    """The page."""
    metrics = [(name, value) for name, value in result.metrics.flat().items()]
    front_picture = html_picture(plot_front(result.sensitivity, result.points, result.kl_budget), "size against KL")
    plans = [(point.name, point.size, point.kl) for point in result.points if point.name]
    columns = ("plan", "bytes of the fused graphs", "KL of the worst codebook (nats per code)")
    parts = [
        ("Metrics", html_table(("metric", "value"), metrics)),
        ("Size against KL", front_picture),
        ("Plans", html_table(columns, plans)),
    ]
    if result.sensitivity is not None:
        picture = html_picture(plot_sensitivity(result.sensitivity), "KL of each group alone")
        parts.append(("Sensitivity", picture))
    for name, parity in result.parity.items():
        parts.append((f"Parity with PyTorch: {name}", html_table(("what", "value"), _parity_rows(parity))))
    support = [(one.graph, one.provider, ", ".join(one.missing) or "none", one.verdict) for one in result.providers]
    parts.append(("Execution providers", html_table(("graph", "provider", "missing operators", "verdict"), support)))
    parts.append(("Plan", html_text(json.dumps(result.plan.model_dump(mode="json"), indent=2))))
    return page(f"{result.recipe}: {result.model} quantized", parts)


def _parity_rows(parity: ParityReport) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [(f"KL, codebook {k + 1} (nats per code)", kl) for k, kl in enumerate(parity.kl)]
    rows += [(f"same most likely code, codebook {k + 1}", share) for k, share in enumerate(parity.agreement)]
    rows += [(f"KL, {part}", kl) for part, kl in parity.by_part.items()]
    rows.append(("largest difference of two logits", parity.worst_logit))
    rows.append(("at step", parity.worst_step))
    rows.append(("first layer that is off by a hundredth", parity.first_layer if parity.first_layer >= 0 else "none"))
    rows.append(("at step", parity.first_step if parity.first_step >= 0 else "none"))
    rows += [(f"largest error of layer {layer}", error) for layer, error in enumerate(parity.layer_errors)]
    rows.append(("codec's signal to noise (dB)", parity.codec_snr))
    return rows


def plot_sensitivity(table: Table) -> bytes:
    """A PNG of the KL of every group alone, in each precision, and by codebook in the coarsest one."""
    groups = [group for group in table if len(table[group]) > 1]
    precisions: list[Precision] = [name for name in _ORDER if any(name in table[group] for group in groups)]
    figure, (above, below) = pyplot().subplots(2, 1, figsize=(11, 8), sharex=True, layout="constrained")
    for precision in precisions:
        kls = [max(MIN_KL, table[group][precision].kl) if precision in table[group] else np.nan for group in groups]
        above.semilogy(kls, "o-", color=_COLOURS[precision], label=precision)
    above.set_title("KL of one group alone (nats per code, mean of the codebooks)")
    coarse = precisions[-1]
    num_codebooks = len(next(iter(table.values()))["float32"].by_codebook)
    for codebook in range(num_codebooks):
        kls = [
            max(MIN_KL, table[group][coarse].by_codebook[codebook]) if coarse in table[group] else np.nan
            for group in groups
        ]
        below.semilogy(kls, ".-", label=f"codebook {codebook + 1}")
    below.set_title(f"by codebook, in {coarse}")
    below.set_xticks(range(len(groups)), groups, rotation=60, ha="right")
    for axis in (above, below):
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    return png(figure)


def plot_front(table: Table | None, points: Sequence[ParetoPoint], budget: float | None) -> bytes:
    """A PNG of size against KL: every plan, and the front of the relaxation if groups were measured."""
    figure, axis = pyplot().subplots(figsize=(11, 6), layout="constrained")
    if table is not None:
        rest = max((point.size for point in points), default=0) - sum(one["float32"].size for one in table.values())
        plans = front(table)
        axis.plot(
            [(size + rest) / 1e6 for _, size, _ in plans],
            [max(MIN_KL, kl) for _, _, kl in plans],
            color="0.6",
            label="front: the groups alone summed up, mean of the codebooks",
        )
    for number, point in enumerate(sorted(points, key=lambda point: point.size)):
        position = (point.size / 1e6, max(MIN_KL, point.kl))
        axis.plot(*position, "o")
        axis.annotate(point.name, position, (7, 5 if number % 2 else -11), textcoords="offset points")
    if budget is not None:
        axis.axhline(budget, color="tab:red", linestyle=":", label="budget")
    axis.set_yscale("log")
    axis.set_xlabel("fused graphs (MB)")
    axis.set_ylabel("KL from float32, worst codebook (nats per code)")
    axis.set_title("size against KL")
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="small")
    return png(figure)
