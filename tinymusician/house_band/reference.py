"""Rendered test tunes as the reference set of an evaluation."""

from __future__ import annotations

import hashlib

from tinymusician.errors import DataError
from tinymusician.evaluate.reference import choose_clips
from tinymusician.house_band.corpus import RenderedSplit
from tinymusician.json_types import JsonObject
from tinymusician.runtime.audio_reader import LoadedClip, resampled


class RenderedClips:
    """Rendered test tunes of the house band."""

    rate = 16_000

    def __init__(self, split: RenderedSplit, count: int, seconds: float, seed: int) -> None:
        longest = split.samples.shape[1] / self.rate
        if seconds > longest:
            raise DataError(
                f"evaluate.seconds = {seconds:g}: the band's clips last {longest:g} s; at most that is allowed"
            )
        chosen = choose_clips(len(split.clips), count, seed, "the band's test tunes")
        self._split = RenderedSplit(split.samples[chosen], [split.clips[index] for index in chosen])
        self._samples = round(seconds * self.rate)
        self.captions = self._split.captions
        self.names = [f"tune {index}" for index in chosen]
        self.captions_by_name = dict(zip(self.names, self.captions, strict=True))
        self.provenance = {"reference": "rendered test tunes of the house band", "clips there": len(split.clips)}

    def location(self, index: int) -> str:
        """The name of a clip."""
        return self.names[index]

    def facts(self, index: int) -> JsonObject:
        """Everything that a clip's audio depends on."""
        samples = self._split.samples[index][: self._samples]
        return {"sha256": hashlib.sha256(samples.tobytes()).hexdigest()}

    def wave(self, index: int, rate: int | None) -> LoadedClip:
        """A clip at a rate, or as it was rendered."""
        wave, rate = self._split.audio(slice(index, index + 1))[0][: self._samples], rate or self.rate
        changed = () if rate == self.rate else (f"resampled from {self.rate} Hz",)
        return LoadedClip(resampled(wave, self.rate, rate), rate, self._split.samples.shape[1] / self.rate, changed)
