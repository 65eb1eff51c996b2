"""The plots of a distillation's training metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tinymusician.plots import png, pyplot
from tinymusician.training.metrics import Row


def plot_metrics(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG with loss, held-out KL by codebook, agreement and rates over the training steps."""
    num_codebooks = sum(name.startswith("loss/") for name in max(rows, key=len))
    panels: list[tuple[str, dict[str, str]]] = [
        (
            "training loss (nats)",
            {"all": "loss"} | {f"codebook {k + 1}": f"loss/{k + 1}" for k in range(num_codebooks)},
        ),
        (
            "held-out KL to the teacher (nats per code)",
            {"all": "held_out/kl"} | {f"codebook {k + 1}": f"held_out/kl/{k + 1}" for k in range(num_codebooks)},
        ),
        (
            "agreement of the most likely code",
            {"training": "agreement", "held out": "held_out/agreement"},
        ),
        ("entropy of the student (nats)", {"training": "entropy", "held out": "held_out/entropy"}),
        ("gradient norm", {"gradient norm": "gradient_norm"}),
        ("stage α, temperature τ", {"α": "alpha", "τ": "temperature"}),
    ]
    figure, axes = pyplot().subplots(3, 2, figsize=(11, 10), sharex=True, layout="constrained")
    for axis, (title, lines) in zip(axes.flat, panels, strict=True):
        for label, name in lines.items():
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=label, marker="." if "held" in name else None)
        axis.set_title(title)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    for axis in axes[-1]:
        axis.set_xlabel("training step")
    path.write_bytes(png(figure))


def plot_components(rows: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Write a PNG with one row per stage: losses as shares of the first one, their weights, and held-out losses."""
    figure, axes = pyplot().subplots(len(rows), 3, figsize=(13, 3.4 * len(rows)), layout="constrained", squeeze=False)
    for line, (stage, stage_rows) in zip(axes, rows.items(), strict=True):
        weights = sorted({name for row in stage_rows for name in row if name.startswith("weight/")})
        losses = [name.removeprefix("weight/") for name in weights]
        held_out = [name for name in (f"held_out/{loss}" for loss in losses) if any(name in row for row in stage_rows)]
        panels = (("losses, share of the first", losses), ("their weights", weights), ("held out, share", held_out))
        for axis, (title, names) in zip(line, panels, strict=True):
            for name in names:
                points = [(row["step"], row[name]) for row in stage_rows if row.get(name) is not None]
                steps, values = zip(*points, strict=True)
                first = 1.0 if name in weights else values[0]
                axis.plot(steps, [value / first for value in values], label=name.rpartition("/")[2], marker=".")
            axis.set_title(f"{stage}: {title}")
            axis.set_xlabel("training step")
            axis.set_yscale("linear" if names is weights else "log")
            axis.grid(alpha=0.3, which="both")
            if names:
                axis.legend(fontsize="small")
    path.write_bytes(png(figure))
