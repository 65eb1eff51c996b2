"""Samples of the house band's teacher, for benchmarks of its distribution."""

from __future__ import annotations

import numpy as np
import torch

from tinymusician.data.prompts import load_prompts, texts_of
from tinymusician.data.splits import Split
from tinymusician.data.tokens import TokenDataset, tokenize_captions
from tinymusician.models.conditional_decoder import encode_text
from tinymusician.models.musicgen import load_musicgen, load_tokenizer
from tinymusician.models.protocols import Musicgen
from tinymusician.models.sampling import sample_codes, sample_seed

GUIDANCE, TOP_K, TEMPERATURE = 2.0, 64, 0.7


def sample_band_large(split: Split, clips: int, frames: int, seed: int) -> tuple[Musicgen, TokenDataset]:
    """band-large, and what it plays for the first captions of a split at its own settings."""
    teacher = load_musicgen("band-large")
    return teacher, sample_tokens(teacher, split, clips, frames, seed)


def sample_tokens(teacher: Musicgen, split: Split, clips: int, frames: int, seed: int) -> TokenDataset:
    """What a model of the band plays for the first captions of a split at the teacher's settings."""
    tokenizer = load_tokenizer("band-large")
    ids, mask = tokenize_captions(tokenizer, texts_of(load_prompts("band"), split)[:clips])
    with torch.no_grad():
        text = encode_text(teacher, torch.from_numpy(ids), torch.from_numpy(mask))
        seeds = [sample_seed(seed, row) for row in range(len(ids))]
        codes = sample_codes(teacher, text, frames, seeds, GUIDANCE, TOP_K, TEMPERATURE)
    return TokenDataset(codes.numpy().astype(np.int16), ids, mask)
