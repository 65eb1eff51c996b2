"""Guidance-conditioned MusicGen: one pass with the guidance scale as an input, instead of two passes.

The scale is a condition like the text: its embedding is added to every text state. Source: guided distillation of
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
from tinymusician.models.tensor_shapes import GUIDANCE_WAVES


class GuidanceEmbedding(nn.Module):
    """The embedding of a scale, [B, E], initially 0: sines and cosines of its position in the range, and two layers."""

    def __init__(self, low: float, high: float, width: int) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.first, self.last = nn.Linear(2 * GUIDANCE_WAVES, width), nn.Linear(width, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, scale_B: Tensor) -> Tensor:
        """The embeddings of scales within the range."""
        position = (scale_B.float() - self.low) / (self.high - self.low)
        angles = position[:, None] * math.pi * torch.arange(1, GUIDANCE_WAVES + 1, device=position.device)
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
    """The same student with guidance conditioning from `low` to `high`; before training, its outputs do not change."""
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
    """Whether a model is guidance-conditioned."""
    return guidance_embedding(model) is not None


def range_of(model: Musicgen) -> tuple[float, float] | None:
    """The guidance scales of a guidance-conditioned model; None for another model."""
    if not is_guidance_conditioned(model):
        return None
    low, high = model.config.guidance_range
    return low, high


def set_default_guidance(model: Musicgen, scale: float, is_distilled: bool) -> None:
    """Set the guidance scale of a model's `generate`, which is 1 if guidance is distilled into its weights.

    `config.guidance_distilled` records that: other people's models may have a default scale of 1 and still be guided.
    """
    model.config.guidance_distilled = is_distilled
    model.generation_config.guidance_scale = 1.0 if is_distilled else scale


def plays_in_one_pass(model: Musicgen) -> bool:
    """Whether a model needs one pass: guidance is in its weights, for one scale or for a range."""
    return is_guidance_conditioned(model) or bool(getattr(model.config, "guidance_distilled", False))


def sampling_scale(model: Musicgen, guidance: float) -> float:
    """The scale with which a sampler combines two passes of a model; 1 means one pass."""
    return 1.0 if plays_in_one_pass(model) else guidance
