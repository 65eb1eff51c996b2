"""The real clips that models are judged against; their captions are the prompts.

Clip `n` of a reference is the same on every machine: files are in their table's order, and a seed chooses among them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tinymusician.data.captioned import CaptionedClip, CaptionedSet
from tinymusician.data.corpus import RenderedSplit
from tinymusician.errors import DataError
from tinymusician.evaluate.audio import LoadedClip, read_clip, resampled


class ReferenceSet(Protocol):
    """Captioned clips. `told` says what the set is, for the report."""

    captions: list[str]
    provenance: dict[str, Any]

    def facts(self, index: int) -> dict[str, Any]:
        """What a clip's sound depends on."""

    def wave(self, index: int, rate: int) -> LoadedClip:
        """A clip at a rate.

        Raises:
            DataError: it cannot be read.
        """


class RenderedClips:
    """Rendered test tunes of the house band."""

    rate = 16_000

    def __init__(self, split: RenderedSplit, count: int, seconds: float, seed: int) -> None:
        longest = split.samples.shape[1] / self.rate
        if seconds > longest:
            raise DataError(
                f"evaluate.seconds = {seconds:g}: the band's clips last {longest:g} s; at most that is allowed"
            )
        chosen = _thinned(len(split.clips), count, seed, "the band's test tunes")
        self._split = RenderedSplit(split.samples[chosen], [split.clips[index] for index in chosen])
        self._samples = round(seconds * self.rate)
        self.captions = self._split.captions
        self.provenance = {"reference": "rendered test tunes of the house band", "clips there": len(split.clips)}

    def facts(self, index: int) -> dict[str, Any]:
        """What a clip's sound depends on."""
        samples = self._split.samples[index][: self._samples]
        return {"sha256": hashlib.sha256(samples.tobytes()).hexdigest()}

    def wave(self, index: int, rate: int) -> LoadedClip:
        """A clip at a rate."""
        wave = self._split.audio(slice(index, index + 1))[0][: self._samples]
        changed = () if rate == self.rate else (f"resampled from {self.rate} Hz",)
        return LoadedClip(resampled(wave, self.rate, rate), changed)


class FileClips:
    """Clips in files."""

    def __init__(self, captioned: CaptionedSet, kind: str, count: int, seconds: float, seed: int) -> None:
        self._clips = [captioned.clips[index] for index in _thinned(len(captioned.clips), count, seed, kind)]
        self._seconds = seconds
        self.captions = [clip.caption for clip in self._clips]
        self.provenance = {
            "reference": kind,
            "clips there": len(captioned.clips),
            "without audio": len(captioned.missing),
        }

    def facts(self, index: int) -> dict[str, Any]:
        """What a clip's sound depends on: where it lies in which bytes."""
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
    """Where in its file a clip begins, and how long it is at most.

    A table gives a clip's place in a whole video; a file that was cut already is shorter than that place.
    """
    if clip.end is None:
        return 0.0, seconds
    import soundfile

    try:
        length = soundfile.info(clip.path).duration
    except soundfile.SoundFileError as error:
        raise DataError(f"{clip.path}: cannot be read as audio ({' '.join(str(error).split())})") from error
    whole = clip.end - clip.start
    cut_already = length <= whole + 1
    return (0.0 if cut_already else clip.start), min(seconds, whole)


def _thinned(there: int, count: int, seed: int, kind: str) -> Sequence[int]:
    if there < count:
        raise DataError(f"evaluate.clips = {count}: {kind} has {there} with their audio; at most as many are allowed")
    return sorted(np.random.default_rng(seed).permutation(there)[:count].tolist())


def open_reference(config: Any, count: int, seconds: float, seed: int, corpus: Path) -> ReferenceSet:
    """The clips that a recipe's `evaluate.reference` asks for; `corpus` is where the band's tunes are rendered.

    Raises:
        DataError: what is missing, and where it belongs.
    """
    from tinymusician.data.captioned import load_folder, load_musicbench, load_musiccaps

    if config.kind == "band":
        from tinymusician.data.corpus import HELD_OUT_CLIPS, load_test_split

        return RenderedClips(load_test_split(corpus, HELD_OUT_CLIPS), count, seconds, seed)
    audio = Path(config.audio).expanduser()
    if config.kind == "folder":
        return FileClips(load_folder(audio), f"folder {audio.name}", count, seconds, seed)
    table = Path(config.table).expanduser()
    if config.kind == "musiccaps":
        captioned = load_musiccaps(table, audio, config.subset)
        return FileClips(captioned, f"MusicCaps ({config.subset})", count, seconds, seed)
    return FileClips(load_musicbench(table, audio), f"MusicBench ({table.name})", count, seconds, seed)
