"""The guidance scales of a guidance-conditioned student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinymusician.distill.signals import Rows, SignalSource, TeacherSignals, guided_at


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
        self._source, self._scale, self.ahead = source, scale, source.ahead

    def __call__(self, rows: Rows, then: Sequence[Rows] = ()) -> TeacherSignals:
        return guided_at(self._source(rows, then), torch.full((len(rows),), self._scale))
