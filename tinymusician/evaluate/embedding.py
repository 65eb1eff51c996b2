"""Embedding models as evaluation sees them: clips in, one vector a window out; and the windows themselves.

Windows are fixed: they follow each other from the clip's start, and the last one ends where the clip ends. A clip that
is shorter than a window is repeated to fill it, as CLAP's own `repeatpad` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Protocol

import numpy as np

from tinymusician.config_model import JsonObject
from tinymusician.evaluate.audio import Wave
from tinymusician.evaluate.clip_embeddings import Floats


class Embedder(Protocol):
    """A model that hears. `facts` is what its vectors depend on: model, weights, windows; they name the cache."""

    rate: int
    facts: JsonObject

    def __call__(self, waves: Sequence[Wave]) -> list[Floats]:
        """Vectors [windows, D] of every wave, mono at `rate` Hz."""


class TextEmbedder(Embedder, Protocol):
    """An embedder whose space holds texts too."""

    def text(self, prompts: Sequence[str]) -> Floats:
        """A vector for every prompt, [N, D]."""


class AudioClassifier(Protocol):
    """A classifier of clips. `facts` as for an embedder."""

    rate: int
    facts: JsonObject

    def __call__(self, waves: Sequence[Wave]) -> dict[str, Floats]:
        """By question (such as `instrument`), class probabilities [N, classes] of every wave."""


def windows(wave: Wave, size: int) -> Floats:
    """A wave's windows of `size` samples, [windows, size]; no copy where they divide it."""
    if len(wave) and len(wave) % size == 0:
        return wave.reshape(-1, size)
    if len(wave) < size:
        whole = np.tile(wave, size // max(1, len(wave)))
        return np.pad(whole, (0, size - len(whole)))[None]
    starts = [*range(0, len(wave) - size, size), len(wave) - size]
    return np.stack([wave[start : start + size] for start in starts])


def in_batches(clips: Sequence[Floats], size: int) -> Iterator[Floats]:
    """The windows of all clips in batches of `size`, each put together when it is asked for."""
    joined = chain.from_iterable(clips)
    while batch := list(islice(joined, size)):
        yield np.stack(batch)


def parted(vectors: Floats, clips: Sequence[Floats]) -> list[Floats]:
    """What was made of joined windows, clip by clip again."""
    return np.split(vectors, np.cumsum([len(clip) for clip in clips])[:-1])
