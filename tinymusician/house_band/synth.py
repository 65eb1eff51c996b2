"""Renders tunes: single lines played by a General MIDI soundfont, every note on the codec's frame grid.

Equal notes give equal samples, and so, nearly always, equal codec tokens: notes begin and end on frame boundaries,
tempi are whole frames per beat, and each instrument has one gain and one velocity. What a language model has to learn
is then the music.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tinymusician.house_band.attributes import FRAME_RATE, INSTRUMENTS, TEMPI, ClipAttributes
from tinymusician.house_band.tunes import Tune

Samples = npt.NDArray[np.float32]

SAMPLE_RATE = 16_000
HOP = SAMPLE_RATE // FRAME_RATE
LOWEST, HIGHEST = 55, 88
TRANSPOSITIONS = (-2, 0, 2)
EVERY_KEY = tuple(range(-5, 7))
"""Transpositions into all twelve keys."""
_VELOCITY = 100
_LOUDNESS = 0.1


class Note(NamedTuple):
    """A note on the frame grid, from frame `on` up to frame `off`."""

    on: int
    off: int
    pitch: int


def sample_attributes(
    tunes: Sequence[Tune], rng: random.Random, transpositions: Sequence[int] = TRANSPOSITIONS
) -> tuple[Tune, ClipAttributes, int]:
    """Sample a clip's content; returns tune, attributes and transposition.

    The tune, the instrument, the tempo, the transposition and the starting beat are random.
    """
    tune = rng.choice(tunes)
    instrument, tempo = rng.choice(list(INSTRUMENTS)), rng.choice(list(TEMPI))
    shift = rng.choice(transpositions)
    last = max(on + length for on, length, _ in tune.notes)
    spare = int(max(0.0, last - 250 / TEMPI[tempo]))
    start = 0 if rng.random() < 0.3 else rng.randint(0, spare)
    tonic = (tune.tonic + shift) % 12
    return tune, ClipAttributes(tune.title, float(start), instrument, tempo, tune.kind, tonic, tune.mode), shift


def notes_on_grid(tune: Tune, facts: ClipAttributes, shift: int, frames: int) -> list[Note]:
    """The notes of `tune` from `facts.start` on that begin within `frames` codec frames.

    A note ends one frame before its written end, and lasts at least two; pitches outside the instrument's range move by
    octaves.
    """
    frames_per_quarter = TEMPI[facts.tempo]
    octave = 12 if facts.instrument == "flute" else 0
    notes = []
    for onset, length, pitch in tune.notes:
        on = round((onset - facts.start) * frames_per_quarter)
        if 0 <= on < frames:
            off = max(on + 2, round((onset - facts.start + length) * frames_per_quarter) - 1)
            notes.append(Note(on, off, _within_range(pitch + shift + octave)))
    return notes


def _within_range(pitch: int) -> int:
    while pitch < LOWEST:
        pitch += 12
    while pitch > HIGHEST:
        pitch -= 12
    return pitch


class SoundfontSynth:
    """The soundfont synthesizer, with one fixed gain per instrument."""

    def __init__(self, font: Path | None = None) -> None:
        """`font` is a General MIDI soundfont, by default the house band's."""
        import tinysoundfont

        self._synth: Any = tinysoundfont.Synth(gain=-3, samplerate=SAMPLE_RATE)
        self._font: int = self._synth.sfload(str(font or soundfont()))
        self._gain = dict.fromkeys(INSTRUMENTS, 1.0)
        for name in INSTRUMENTS:
            scale = [self.render([Note(0, 16, pitch)], name, 20) for pitch in range(60, 84, 2)]
            self._gain[name] = _LOUDNESS / float(np.sqrt(np.mean(np.square(scale))))

    def render(self, notes: Sequence[Note], instrument: str, frames: int) -> Samples:
        """Render `notes` with one instrument; returns mono samples [frames · 320] at 16 kHz."""
        self._silence()
        self._synth.program_select(0, self._font, 0, INSTRUMENTS[instrument])
        pieces, now = [], 0
        for frame, starts, pitch in _events(notes, frames):
            if frame > now:
                pieces.append(self._advance((frame - now) * HOP))
                now = frame
            if starts:
                self._synth.noteon(0, pitch, _VELOCITY)
            else:
                self._synth.noteoff(0, pitch)
        pieces.append(self._advance((frames - now) * HOP))
        mono: Samples = np.concatenate(pieces) * self._gain[instrument]
        return np.clip(mono, -0.99, 0.99).astype(np.float32)

    def _advance(self, samples: int) -> Samples:
        stereo = np.frombuffer(self._synth.generate(samples), np.float32).reshape(-1, 2)[:samples]
        mono: Samples = np.mean(stereo, axis=1)
        return mono

    def _silence(self) -> None:
        self._synth.sounds_off()
        self._synth.generate(4 * HOP)


def _events(notes: Sequence[Note], frames: int) -> Iterator[tuple[int, bool, int]]:
    """Note-offs before note-ons of the same frame, none after the end of the clip."""
    ends = [(note.off, False, note.pitch) for note in notes if note.off < frames]
    starts = [(note.on, True, note.pitch) for note in notes if note.on < frames]
    yield from sorted([*ends, *starts])


@cache
def soundfont() -> Path:
    """The General MIDI soundfont (TimGM6mb) of pretty_midi."""
    import pretty_midi

    return Path(pretty_midi.__file__).parent / "TimGM6mb.sf2"
