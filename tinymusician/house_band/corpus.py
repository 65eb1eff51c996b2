"""The rendered corpus on disk: one array of clips and one JSON of attributes and captions per split.

Clip `i` of a split is a function of the seed, the split and `i` alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tinymusician.data.splits import Split
from tinymusician.house_band.attributes import FRAME_RATE, ClipAttributes, caption
from tinymusician.house_band.synth import HOP, TRANSPOSITIONS, Note, SoundfontSynth, notes_on_grid, sample_attributes
from tinymusician.house_band.tunes import TUNES, Tune, family_names, load_tunes
from tinymusician.json_types import JsonObject
from tinymusician.runtime.pcm16 import from_pcm16, to_pcm16

CLIP_FRAMES = 5 * FRAME_RATE
SEED = 0
HELD_OUT_CLIPS = 400
"""The number of test clips that results are reported on."""


@dataclass(frozen=True)
class Clip:
    """One clip's attributes, its caption, the notes that begin in it, by onset, and its tune's meter, such as 6/8.

    `family` names the tune's family: clips of one family are alike.
    """

    facts: ClipAttributes
    caption: str
    notes: tuple[Note, ...]
    meter: str = "?"
    family: str = ""


@dataclass(frozen=True)
class RenderedSplit:
    """A split in memory map: `samples` int16 [N, 80000] at 16 kHz, and N clips in the same order.

    `digest` identifies what all clips of the split were rendered from; a part of a split has none.
    """

    samples: npt.NDArray[np.int16]
    clips: list[Clip]
    digest: str = ""

    def audio(self, index: npt.NDArray[np.int64] | slice) -> npt.NDArray[np.float32]:
        """The selected clips as float32 in [-1, 1], [n, 80000]."""
        return from_pcm16(self.samples[index])

    @property
    def captions(self) -> list[str]:
        """The captions in order."""
        return [clip.caption for clip in self.clips]


def load_split(
    folder: Path,
    tunes: Sequence[Tune],
    split: Split,
    count: int,
    seed: int,
    transpositions: Sequence[int] = TRANSPOSITIONS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> RenderedSplit:
    """Read `count` clips of `split` from `folder`, and render them first if they are missing.

    The files' names contain a digest of what they were rendered from, so a corpus of other tunes is never used instead.
    """
    selected = [tune for tune in tunes if tune.split == split]
    content = (selected, split, count, seed, tuple(transpositions))
    digest = hashlib.sha256(repr(content).encode()).hexdigest()[:12]
    audio, facts = folder / f"{split}-{digest}.npy", folder / f"{split}-{digest}.json"
    if not facts.exists():
        _render(audio, facts, selected, f"{seed}/{split}", count, transpositions, on_progress)
    family_of = dict(zip((tune.title for tune in selected), family_names(selected), strict=True))
    clips = [_from_json(entry, family_of) for entry in json.loads(facts.read_text())]
    return RenderedSplit(np.load(audio, mmap_mode="r"), clips, audio.stem)


def _from_json(entry: JsonObject, family_of: Mapping[str, str]) -> Clip:
    facts, notes = ClipAttributes(**entry["facts"]), tuple(Note(*note) for note in entry["notes"])
    return Clip(facts, entry["caption"], notes, entry["meter"], family_of[facts.title])


def load_test_split(folder: Path, count: int) -> RenderedSplit:
    """The clips of test tunes that the band's weights were not trained on; the scores are parsed first if necessary."""
    return load_split(folder, load_tunes(folder / TUNES), "test", count, SEED)


def _render(
    audio: Path,
    facts: Path,
    tunes: Sequence[Tune],
    seed: str,
    count: int,
    transpositions: Sequence[int],
    on_progress: Callable[[int, int], None],
) -> None:
    """Render `count` clips; the attributes are written last, so a split is either complete or absent."""
    audio.parent.mkdir(parents=True, exist_ok=True)
    band, entries = SoundfontSynth(), []
    for left in audio.parent.glob(f"{audio.name}.*.part"):  # by a worker that was killed, not by one at work
        if time.time() - left.stat().st_mtime > 3600:
            left.unlink(missing_ok=True)
    draft = audio.with_name(f"{audio.name}.{os.getpid()}.part")
    samples = np.lib.format.open_memmap(draft, "w+", np.int16, (count, CLIP_FRAMES * HOP))
    for index in range(count):
        clip, wave = _draw(band, tunes, random.Random(f"{seed}/{index}"), transpositions)
        samples[index] = to_pcm16(wave)
        entries.append(asdict(clip))
        on_progress(index + 1, count)
    samples.flush()
    os.replace(draft, audio)
    draft.write_text(json.dumps(entries))
    os.replace(draft, facts)


def _draw(
    band: SoundfontSynth, tunes: Sequence[Tune], rng: random.Random, transpositions: Sequence[int]
) -> tuple[Clip, npt.NDArray[np.float32]]:
    while True:
        tune, facts, shift = sample_attributes(tunes, rng, transpositions)
        notes = notes_on_grid(tune, facts, shift, CLIP_FRAMES)
        if len(notes) >= 4:
            wave = band.render(notes, facts.instrument, CLIP_FRAMES)
            return Clip(facts, caption(facts, rng), tuple(notes), tune.meter), wave
