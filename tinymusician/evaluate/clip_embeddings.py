"""The embeddings of a set of clips: vectors, each of which belongs to a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tinymusician.errors import DataError

Floats = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.int64]
MAX_PAIRED_VECTORS = 8000
"""The most vectors that are compared with each other in pairs."""


@dataclass(frozen=True)
class ClipEmbeddings:
    """`values` [M, D]: the windows or frames of all clips in order; `owners` [M]: each one's clip, ascending."""

    values: Floats
    owners: Indices

    @classmethod
    def of(cls, clips: Sequence[Floats]) -> ClipEmbeddings:
        """From one array [windows, D] per clip.

        Raises:
            DataError: there is no clip, one has no windows, or values are not finite.
        """
        if not clips or any(len(clip) == 0 for clip in clips):
            raise DataError(
                f"embeddings: {len(clips)} clips, {sum(len(c) == 0 for c in clips)} of them without windows"
            )
        values = np.concatenate(clips).astype(np.float64)
        owners = np.repeat(np.arange(len(clips)), [len(clip) for clip in clips])
        bad = np.unique(owners[~np.isfinite(values).all(axis=1)])
        if len(bad):
            raise DataError(f"embeddings: clip {bad[0]} and {len(bad) - 1} others hold numbers that are not finite")
        return cls(values, owners)

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.values.shape[1])

    @cached_property
    def windows(self) -> Indices:
        """The number of vectors of each clip, [N]."""
        return np.bincount(self.owners)

    @property
    def clips(self) -> int:
        """N."""
        return len(self.windows)

    def clip(self, index: int) -> Floats:
        """One clip's vectors."""
        end = int(self.windows[: index + 1].sum())
        return self.values[end - int(self.windows[index]) : end]

    def select(self, clips: Indices) -> ClipEmbeddings:
        """These clips, in this order; a clip that occurs twice counts as two."""
        starts = (np.cumsum(self.windows) - self.windows)[clips]
        counts = self.windows[clips]
        first = np.cumsum(counts) - counts
        indices = np.arange(counts.sum()) - np.repeat(first - starts, counts)
        return ClipEmbeddings(self.values[indices], np.repeat(np.arange(len(clips)), counts))

    def subsampled(self) -> ClipEmbeddings:
        """At most `MAX_PAIRED_VECTORS` vectors, or one per clip: evenly spaced ones of each clip."""
        if len(self.values) <= MAX_PAIRED_VECTORS:
            return self
        share = max(1, MAX_PAIRED_VECTORS // self.clips)
        whole = [self.clip(number) for number in range(self.clips)]
        return ClipEmbeddings.of(
            [clip[np.linspace(0, len(clip) - 1, min(share, len(clip))).round().astype(int)] for clip in whole]
        )
