"""The guidance scales of a guidance-conditioned student."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinymusician.distill.signals import Rows, SignalSource, TeacherSignals, guided_at


def integer_scales(range_: tuple[float, float] | None) -> list[float]:
    """The ends of a range of guidance scales and the whole numbers between them."""
    if range_ is None:
        return []
    low, high = range_
    return [low, *(float(scale) for scale in range(math.floor(low) + 1, math.ceil(high))), high]


def evenly_spaced_scales(range_: tuple[float, float], count: int) -> tuple[float, ...]:
    """Evenly spaced scales within a range, without its ends, where half of the embedding is 0."""
    low, high = range_
    return tuple(low + (high - low) * (index + 0.5) / count for index in range(count))


@dataclass(frozen=True)
class GuidanceSampler:
    """Samples guidance scales uniformly from `low` to `high`."""

    low: float
    high: float

    @property
    def validated(self) -> list[float]:
        """The scales of validation: both ends and the middle."""
        return [self.low, (self.low + self.high) / 2, self.high]

    def sample(self, seed: int, step: int, part: int, rows: int) -> Tensor:
        """The scales of a part's rows, [R]."""
        rng = np.random.default_rng((seed, step, part))
        return torch.from_numpy(rng.uniform(self.low, self.high, rows).astype(np.float32))


class FixedScaleSource:
    """Turns a source of both passes into one of their guided distribution at one scale."""

    def __init__(self, source: SignalSource, scale: float) -> None:
        self._source, self._scale, self.prefetch = source, scale, source.prefetch

    def __call__(self, rows: Rows, then: Sequence[Rows] = ()) -> TeacherSignals:
        return guided_at(self._source(rows, then), torch.full((len(rows),), self._scale))
