"""A student that is told its guidance scale: in one pass it plays what its teacher needs two for, at a range of scales.

The scale is a condition like the text: an embedding of it is added to every text state. Source: guided distillation of
diffusion models with the scale as an input (arXiv 2210.03142, section 3.1).
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MusicgenForConditionalGeneration

from tinymusician.models.protocols import Musicgen

_WAVES = 8


class GuidanceEmbedding(nn.Module):
    """A scale's embedding [B, E], at first 0: sines and cosines of its place in the range, and two layers."""

    def __init__(self, low: float, high: float, width: int) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.first, self.last = nn.Linear(2 * _WAVES, width), nn.Linear(width, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, scale_B: Tensor) -> Tensor:
        """The embeddings of scales within the range."""
        place = (scale_B.float() - self.low) / (self.high - self.low)
        angles = place[:, None] * math.pi * torch.arange(1, _WAVES + 1, device=place.device)
        waves = torch.cat([angles.sin(), angles.cos()], -1).to(self.first.weight.dtype)
        embedding: Tensor = self.last(nn.functional.silu(self.first(waves)))
        return embedding


class GuidanceConditionedMusicgen(MusicgenForConditionalGeneration):  # type: ignore[misc]
    """transformers' MusicGen with the embedding of `config.guidance_range`, saved and loaded with it."""

    def __init__(self, config: Any, **parts: Any) -> None:
        super().__init__(config, **parts)
        low, high = config.guidance_range
        self.guidance_embedding = GuidanceEmbedding(low, high, config.text_encoder.d_model)


def add_guidance_conditioning(student: Musicgen, low: float, high: float) -> GuidanceConditionedMusicgen:
    """The same student, told its scale from `low` to `high`; until it has learned to listen it plays as before."""
    config = copy.deepcopy(student.config)
    config.guidance_range = [low, high]
    conditioned: GuidanceConditionedMusicgen = GuidanceConditionedMusicgen(config)
    nn.init.zeros_(conditioned.guidance_embedding.last.weight)  # transformers initialises new modules in its own way
    conditioned.load_state_dict(student.state_dict(), strict=False)
    conditioned.generation_config = copy.deepcopy(student.generation_config)
    conditioned.eval()
    return conditioned


def guidance_embedding(model: Musicgen) -> GuidanceEmbedding | None:
    """The embedding of the guidance scale; None for a model without guidance conditioning."""
    embedding: GuidanceEmbedding | None = getattr(model, "guidance_embedding", None)
    return embedding


def is_guidance_conditioned(model: Musicgen) -> bool:
    """Whether a model is told its guidance scale."""
    return guidance_embedding(model) is not None


def range_of(model: Musicgen) -> tuple[float, float] | None:
    """The scales that a model can be told; None if it is told none."""
    if not is_guidance_conditioned(model):
        return None
    low, high = model.config.guidance_range
    return low, high


def plays_in_one_pass(model: Musicgen) -> bool:
    """Whether guidance is in a model's weights, for one scale or for those that it is told."""
    return is_guidance_conditioned(model) or model.generation_config.guidance_scale == 1


def passes_of(model: Musicgen, guidance: float) -> float:
    """The scale by which a sampler must combine two passes of a model; 1 asks for one."""
    return 1.0 if plays_in_one_pass(model) else guidance
