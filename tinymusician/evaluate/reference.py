"""The real clips of an evaluation; their captions are the prompts.

Clip `n` of a reference is the same on every machine: files are in their table's order, and a seed selects among them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tinymusician.data.captioned import CaptionedClip, CaptionedSet
from tinymusician.errors import DataError
from tinymusician.json_types import JsonObject
from tinymusician.runtime.audio_reader import LoadedClip, audio_seconds, read_clip


class ReferenceSet(Protocol):
    """Captioned clips. `provenance` describes the set in the report."""

    captions: list[str]
    provenance: JsonObject

    def facts(self, index: int) -> JsonObject:
        """Everything that a clip's audio depends on."""

    def wave(self, index: int, rate: int) -> LoadedClip:
        """A clip at a rate.

        Raises:
            DataError: it cannot be read.
        """


class FileClips:
    """Clips in files."""

    def __init__(self, captioned: CaptionedSet, kind: str, count: int, seconds: float, seed: int) -> None:
        self._clips = [captioned.clips[index] for index in choose_clips(len(captioned.clips), count, seed, kind)]
        self._seconds = seconds
        self.captions = [clip.caption for clip in self._clips]
        left_out = {f"left out, {reason}": len(paths) for reason, paths in captioned.left_out.items()}
        self.provenance = {"reference": kind, "clips there": len(captioned.clips), **left_out}

    def facts(self, index: int) -> JsonObject:
        """Everything that a clip's audio depends on: its position, and the bytes of its file."""
        clip = self._clips[index]
        try:
            with clip.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{clip.path}: cannot be read ({error.strerror})") from error
        return {"sha256": digest, "start": clip.start, "seconds": self._seconds}

    def wave(self, index: int, rate: int) -> LoadedClip:
        """A clip at a rate."""
        clip = self._clips[index]
        loaded = read_clip(clip.path, rate, *_span(clip, self._seconds))
        short = len(loaded.wave) < 0.99 * self._seconds * rate
        return LoadedClip(loaded.wave, (*loaded.changed, f"shorter than {self._seconds:g} s")) if short else loaded


def _span(clip: CaptionedClip, seconds: float) -> tuple[float, float]:
    """The position of a clip in its file, and its maximum length, in seconds.

    A table gives a clip's position in a whole video; the file of a clip that was already cut is shorter.
    """
    if clip.end is None:
        return 0.0, seconds
    whole = clip.end - clip.start
    cut_already = audio_seconds(clip.path) <= whole + 1
    return (0.0 if cut_already else clip.start), min(seconds, whole)


def choose_clips(there: int, count: int, seed: int, kind: str) -> Sequence[int]:
    """The indices of `count` of a set's `there` clips, selected by a seed, in order.

    Raises:
        DataError: the set has fewer.
    """
    if there < count:
        raise DataError(f"evaluate.clips = {count}: {kind} has {there} with their audio; at most as many are allowed")
    return sorted(np.random.default_rng(seed).permutation(there)[:count].tolist())
