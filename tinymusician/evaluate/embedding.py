"""The interfaces of embedding models and classifiers, and their fixed windows.

Windows follow each other from the clip's start, and the last one ends at the clip's end. A clip that is shorter than a
window is repeated to fill it, like CLAP's `repeatpad`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Protocol

import numpy as np

from tinymusician.evaluate.clip_embeddings import Floats
from tinymusician.json_types import JsonObject
from tinymusician.runtime.audio_reader import Wave


class Embedder(Protocol):
    """An embedding model. `facts` is what its vectors depend on: model, weights, windows; it is part of cache keys."""

    rate: int
    facts: JsonObject

    def __call__(self, waves: Sequence[Wave]) -> list[Floats]:
        """Vectors [windows, D] of every wave, mono at `rate` Hz."""


class TextEmbedder(Embedder, Protocol):
    """An embedder with a joint space of audio and text."""

    def text(self, prompts: Sequence[str]) -> Floats:
        """One vector per prompt, [N, D]."""


class AudioClassifier(Protocol):
    """An audio classifier. `facts` is as for an embedder."""

    rate: int
    facts: JsonObject

    def __call__(self, waves: Sequence[Wave]) -> dict[str, Floats]:
        """By question (such as `instrument`), class probabilities [N, classes] of every wave."""


def windows(wave: Wave, size: int) -> Floats:
    """A wave's windows of `size` samples, [windows, size]; no copy if they divide it."""
    if len(wave) and len(wave) % size == 0:
        return wave.reshape(-1, size)
    if len(wave) < size:
        whole = np.tile(wave, size // max(1, len(wave)))
        return np.pad(whole, (0, size - len(whole)))[None]
    starts = [*range(0, len(wave) - size, size), len(wave) - size]
    return np.stack([wave[start : start + size] for start in starts])


def in_batches(clips: Sequence[Floats], size: int) -> Iterator[Floats]:
    """The windows of all clips in batches of `size`, each built when it is needed."""
    joined = chain.from_iterable(clips)
    while batch := list(islice(joined, size)):
        yield np.stack(batch)


def split_by_clip(vectors: Floats, clips: Sequence[Floats]) -> list[Floats]:
    """Split the results of joined windows by clip."""
    return np.split(vectors, np.cumsum([len(clip) for clip in clips])[:-1])
