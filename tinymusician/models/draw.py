"""Draws codes from logits on the logits' device; the same formula as the engine's `tinymusician.runtime.sampling.draw`.

Shapes: leading axes are arbitrary, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinymusician.runtime.sampling import SamplingParams


def draw_codes(logits: Tensor, uniforms: Tensor, sampling: SamplingParams) -> Tensor:
    """A code for each row of `logits` [..., V], by inverse transform of `uniforms` [...] in [0, 1), in float64.

    `sampling.top_p` is not supported, which must be 1.
    """
    assert sampling.top_p == 1, "the teacher's sampler has no nucleus filter"
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scores = logits.double() / sampling.temperature
    vocabulary = scores.shape[-1]
    if 0 < sampling.top_k < vocabulary:
        threshold = scores.topk(sampling.top_k, sorted=False).values.amin(-1, keepdim=True)
        scores = scores.masked_fill(scores < threshold, -torch.inf)
    cumulative = scores.softmax(-1).cumsum(-1)
    codes = (cumulative <= uniforms[..., None] * cumulative[..., -1:]).sum(-1)
    return codes.clamp(max=vocabulary - 1)
