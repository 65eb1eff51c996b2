"""What a finished distillation shows: a plot of its training, and how the teacher likes the student's samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinymusician.data.tokens import TokenDataset
from tinymusician.distill.signals import DecoderBatch, condition
from tinymusician.models.guidance import passes_of, plays_in_one_pass
from tinymusician.models.likelihood import cross_entropies, forced_logits, varieties
from tinymusician.models.musicgen import ConditionedDecoder, encode_text, guidance_condition
from tinymusician.models.sampling import sample_codes
from tinymusician.plots import png, pyplot
from tinymusician.runtime.sampling import guide


class SampleStats(NamedTuple):
    """`cross_entropy` under the teacher (nats a code), and `variety`: the entropy of the codes' frequencies (nats)."""

    cross_entropy: float
    variety: float


@torch.no_grad()
def sample_figures(
    teacher: Any,
    student: Any,
    prompts: TokenDataset,
    guidance: float,
    top_k: int,
    temperature: float,
    seed: int,
    at_once: int,
) -> SampleStats:
    """The student plays `prompts` freely; the teacher (with text, without guidance) says how likely that is.

    So many are played `at_once`: that many caches and logits are in memory.

    `prompts` gives the texts and the length; its codes are not used. Cross-entropy alone can mislead: a student that
    falls into a loop is easy to predict. Variety near 0 tells that it did.
    """
    device = next(teacher.parameters()).device
    frames, passes = prompts.codes.shape[2], passes_of(student, guidance)
    generator = torch.Generator(device).manual_seed(seed)
    surprises, variety = [], []
    for first in range(0, len(prompts.codes), at_once):
        rows = slice(first, first + at_once)
        ids, mask = (torch.from_numpy(part[rows]).to(device) for part in (prompts.text_ids, prompts.text_mask))
        text = guidance_condition(student, ids, mask, guidance)
        codes = sample_codes(student, text, frames, generator, passes, top_k, temperature).numpy()
        logits, _ = forced_logits(teacher, encode_text(teacher, ids, mask), codes)
        surprises.append(np.asarray(cross_entropies(logits, codes).cpu()))
        variety.append(varieties(codes))
    return SampleStats(float(np.concatenate(surprises).mean()), float(np.concatenate(variety).mean()))


@torch.no_grad()
def played_logits(student: Any, decoder: ConditionedDecoder, sequences: DecoderBatch) -> Tensor:
    """The logits [R, K, S, V] that a student is played from along sequences, at their guidance scales.

    One that has its guidance within it needs one pass; another's two are combined.
    """
    text = condition(student, sequences)
    if plays_in_one_pass(student):
        logits: Tensor = decoder(sequences.inputs, text.states, text.mask, sequences.scale)
        return logits
    null = text.without_text()
    with_text, without = (decoder(sequences.inputs, each.states, each.mask) for each in (text, null))
    guided: Tensor = guide(with_text.float(), without.float(), sequences.scale[:, None, None, None])
    return guided


def plot_metrics(rows: list[dict[str, Any]], path: Path) -> None:
    """A PNG with loss, held-out KL by codebook, agreement and rates over the training steps."""
    num_codebooks = sum(name.startswith("loss/") for name in max(rows, key=len))
    panels: list[tuple[str, dict[str, str]]] = [
        (
            "training loss (nats)",
            {"all": "loss"} | {f"codebook {k + 1}": f"loss/{k + 1}" for k in range(num_codebooks)},
        ),
        (
            "held-out KL to the teacher (nats a code)",
            {"all": "held_out/kl"} | {f"codebook {k + 1}": f"held_out/kl/{k + 1}" for k in range(num_codebooks)},
        ),
        (
            "agreement of the likeliest code",
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


def plot_parts(rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """A PNG with a row a stage: its losses as shares of their first, their weights, and held-out losses likewise."""
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
