"""What a finished distillation shows: a plot of its training, and how the teacher likes the student's samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from tinymusician.codebooks import delay, inputs_for, valid
from tinymusician.data.tokens import TokenSet
from tinymusician.models.musicgen import ConditionedDecoder, TextCondition, encode_text
from tinymusician.models.sampling import sample_codes


@torch.no_grad()
def sample_cross_entropy(
    teacher: Any, student: Any, prompts: TokenSet, guidance: float, top_k: int, seed: int
) -> float:
    """The teacher's cross-entropy (nats a code, with text, without guidance) on the student's samples for `prompts`.

    `prompts` gives the texts and the length; its codes are not used. Lower means that the teacher finds the student's
    music more likely.
    """
    device = next(teacher.parameters()).device
    ids, mask = (torch.from_numpy(part).to(device) for part in (prompts.text_ids, prompts.text_mask))
    frames, pad = prompts.codes.shape[2], teacher.config.decoder.vocab_size
    generator = torch.Generator(device).manual_seed(seed)
    codes = sample_codes(student, encode_text(student, ids, mask), frames, generator, guidance, top_k)
    targets = delay(codes.numpy(), pad)
    inputs = torch.from_numpy(inputs_for(targets, pad)).to(device)
    text: TextCondition = encode_text(teacher, ids, mask)
    logits = ConditionedDecoder(teacher).eval()(inputs, text.states, text.mask)
    carries = torch.from_numpy(valid(codes.shape[1], frames)).expand(len(codes), -1, -1).to(device)
    return F.cross_entropy(logits[carries].float(), torch.from_numpy(targets).to(device)[carries]).item()


def plot_metrics(rows: list[dict[str, Any]], path: Path) -> None:
    """A PNG with loss, held-out KL by codebook, agreement and rates over the training steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    books = sum(name.startswith("loss/") for name in max(rows, key=len))
    panels: list[tuple[str, dict[str, str]]] = [
        ("training loss (nats)", {"all": "loss"} | {f"codebook {k + 1}": f"loss/{k + 1}" for k in range(books)}),
        (
            "held-out KL to the teacher (nats a code)",
            {"all": "held_out/kl"} | {f"codebook {k + 1}": f"held_out/kl/{k + 1}" for k in range(books)},
        ),
        (
            "agreement of the likeliest code",
            {"training": "agreement", "held out": "held_out/agreement"},
        ),
        ("entropy of the student (nats)", {"training": "entropy", "held out": "held_out/entropy"}),
        ("gradient norm", {"gradient norm": "gradient_norm"}),
        ("stage α, temperature τ", {"α": "alpha", "τ": "temperature"}),
    ]
    figure, axes = pyplot.subplots(3, 2, figsize=(11, 10), sharex=True, layout="constrained")
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
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
