"""The learning rate: linear warm-up, then half a cosine down to a twentieth of the peak."""

from __future__ import annotations

import math

LAST_SHARE = 0.05


def learning_rate(step: int, peak: float, warmup: int, steps: int) -> float:
    """The rate at `step` of `steps`, counted from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
