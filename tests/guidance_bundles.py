"""Guidance-conditioned students whose scale changes the logits as much as the text does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bundles import write_bundle

RANGE = (1.0, 5.0)


def guidance_student(name: str, loudness: float) -> Any:
    """A model with a random embedding of scales from 1 to 5, whose entries are about `loudness` times the weights'."""
    import torch

    from tinymusician.models.guidance import add_guidance_conditioning
    from tinymusician.models.musicgen import load_musicgen

    torch.manual_seed(5)
    student = add_guidance_conditioning(load_musicgen(name), *RANGE)
    with torch.no_grad():
        student.guidance_embedding.last.weight.normal_(std=loudness)
        student.guidance_embedding.last.bias.normal_(std=0.5)
    return student


def write_guidance_bundle(student: Any, tokenizer: Path, folder: Path, seconds: float) -> None:
    """A float32 bundle of it, which plays at 3 if nothing else is asked for."""
    write_bundle(student, tokenizer, folder, seconds=seconds, one_pass=True, guidance=3.0, guidance_range=RANGE)
