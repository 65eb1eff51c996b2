"""What can be asked about a clip of the house band, and its answer, from the notes inside the clip's own window.

Each function returns the value of one attribute, or None where it cannot be heard in the clip: too few notes, values
near a border between two answers, or notes that point to another key than the tune's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinymusician.house_band.attributes import INSTRUMENTS, PITCH_CLASSES, TEMPI
from tinymusician.house_band.corpus import CLIP_FRAMES, Clip
from tinymusician.house_band.synth import Note
from tinymusician.runtime.audio_lm_bundle import FinerAttribute

MIN_NOTES = 6
_LAST_CLEAR_ONSET = CLIP_FRAMES - 5
FAMILIES = {
    "piano": "keyboard",
    "church organ": "keyboard",
    "fiddle": "bowed strings",
    "banjo": "plucked strings",
    "trumpet": "brass",
    "flute": "woodwind",
}
METERS = {
    "2/4": "duple",
    "4/4": "duple",
    "2/2": "duple",
    "3/4": "triple",
    "3/8": "triple",
    "6/8": "compound",
    "9/8": "compound",
    "12/8": "compound",
}
KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in PITCH_CLASSES)
_PROFILES = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}
"""How well each pitch class fits a key on the first (Krumhansl and Kessler, 1982)."""

Value = Callable[[Clip], str | None]


@dataclass(frozen=True)
class Skill:
    """An attribute: its possible answers, its value for a clip, and a finer attribute from which it follows, if any."""

    name: str
    answers: tuple[str, ...]
    value: Value
    finer: FinerAttribute | None = None


def instrument(clip: Clip) -> str:
    """The instrument."""
    return clip.facts.instrument


def family(clip: Clip) -> str:
    """The instrument's family."""
    return FAMILIES[clip.facts.instrument]


def tempo(clip: Clip) -> str | None:
    """The tempo; it needs six notes."""
    return clip.facts.tempo if len(clip.notes) >= MIN_NOTES else None


def key(clip: Clip) -> str | None:
    """The key, where the notes of the clip fit no other key better."""
    return clip.facts.key if estimate_key(clip.notes) == clip.facts.key else None


def mode(clip: Clip) -> str | None:
    """Major or minor, under the same rule as the key."""
    return clip.facts.mode if key(clip) is not None else None


def meter(clip: Clip) -> str | None:
    """Duple, triple or compound; two whole bars must be in the clip."""
    if clip.meter not in METERS:
        return None
    beats, unit = (int(number) for number in clip.meter.split("/"))
    bar_frames = TEMPI[clip.facts.tempo] * 4 * beats / unit
    return METERS[clip.meter] if 2 * bar_frames <= CLIP_FRAMES else None


def note_count(clip: Clip) -> str | None:
    """The number of notes, in four ranges."""
    return _range_of(len(clip.notes), NOTE_COUNTS)


def pitch_range(clip: Clip) -> str | None:
    """The interval between the lowest and the highest note, in four ranges."""
    pitches = [note.pitch for note in _clear_notes(clip)]
    if len(pitches) < MIN_NOTES:
        return None
    return _range_of(max(pitches) - min(pitches), PITCH_RANGES)


def contour(clip: Clip) -> str | None:
    """The direction of the line between the means of its three thirds, where it is clear."""
    if len(clip.notes) < MIN_NOTES:
        return None
    first, middle, last = (_mean_pitch(clip.notes, third) for third in range(3))
    if np.isnan([first, middle, last]).any():
        return None
    if last - first >= 4 and first - 1 <= middle <= last + 1:
        return "rises"
    if first - last >= 4 and last - 1 <= middle <= first + 1:
        return "falls"
    if middle - max(first, last) >= 2:
        return "rises, then falls"
    if min(first, last) - middle >= 2:
        return "falls, then rises"
    return None


def motion(clip: Clip) -> str | None:
    """Whether the melody moves by steps (at most two semitones) or by leaps, where one of them clearly prevails."""
    steps = np.abs(np.diff([note.pitch for note in _clear_notes(clip)]))
    if len(steps) < MIN_NOTES - 1:
        return None
    share = float(np.mean(steps <= 2))
    return "steps" if share >= 0.65 else "leaps" if share <= 0.4 else None


def busier_half(clip: Clip) -> str | None:
    """Which half has at least 1.3 times as many notes as the other, and three more."""
    first = sum(note.on < CLIP_FRAMES // 2 for note in clip.notes)
    second = len(clip.notes) - first
    if max(first, second) < 1.3 * min(first, second) or abs(first - second) < 3:
        return None
    return "first half" if first > second else "second half"


def highest_note(clip: Clip) -> str | None:
    """The pitch class of the highest note, unless a higher one begins as the clip ends."""
    clear, highest = _clear_notes(clip), max((note.pitch for note in clip.notes), default=0)
    if len(clear) < MIN_NOTES or highest > max(note.pitch for note in clear):
        return None
    return PITCH_CLASSES[highest % 12]


NOTE_COUNTS = {"fewer than 9": (0, 7), "9 to 15": (10, 14), "16 to 23": (17, 22), "24 or more": (25, 999)}
"""Numbers of notes: what is said, and the smallest and largest number of which it is; between them is a gap."""
PITCH_RANGES = {
    "at most a fifth": (0, 7),
    "between a fifth and an octave": (9, 12),
    "between one octave and one and a half": (14, 17),
    "more than an octave and a half": (19, 99),
}
"""Intervals in semitones, in the same way."""
_BY_FAMILY = FinerAttribute(
    attribute="instrument",
    values={name: tuple(i for i in INSTRUMENTS if FAMILIES[i] == name) for name in FAMILIES.values()},
)
_BY_MODE = FinerAttribute(
    attribute="key", values={name: tuple(f"{tonic} {name}" for tonic in PITCH_CLASSES) for name in ("major", "minor")}
)
SKILLS: Mapping[str, Skill] = {
    skill.name: skill
    for skill in (
        Skill("instrument", tuple(INSTRUMENTS), instrument),
        Skill("family", tuple(dict.fromkeys(FAMILIES.values())), family, _BY_FAMILY),
        Skill("tempo", tuple(TEMPI), tempo),
        Skill("key", KEYS, key),
        Skill("mode", ("major", "minor"), mode, _BY_MODE),
        Skill("meter", tuple(dict.fromkeys(METERS.values())), meter),
        Skill("note_count", tuple(NOTE_COUNTS), note_count),
        Skill("pitch_range", tuple(PITCH_RANGES), pitch_range),
        Skill("contour", ("rises", "falls", "rises, then falls", "falls, then rises"), contour),
        Skill("motion", ("steps", "leaps"), motion),
        Skill("busier_half", ("first half", "second half"), busier_half),
        Skill("highest_note", PITCH_CLASSES, highest_note),
    )
}
"""The attributes by name."""


def estimate_key(notes: Sequence[Note]) -> str:
    """The key whose profile correlates best with the durations of the pitch classes (Krumhansl, 1990, chapter 4)."""
    weights = np.zeros(12)
    for note in notes:
        weights[note.pitch % 12] += min(note.off, CLIP_FRAMES) - note.on
    fits = {
        f"{PITCH_CLASSES[tonic]} {mode_name}": np.corrcoef(np.roll(profile, tonic), weights)[0, 1]
        for mode_name, profile in _PROFILES.items()
        for tonic in range(12)
    }
    return max(fits, key=lambda name: float(fits[name]))


def _clear_notes(clip: Clip) -> list[Note]:
    """The notes that sound for a tenth of a second before the clip ends."""
    return [note for note in clip.notes if note.on <= _LAST_CLEAR_ONSET]


def _range_of(value: int, ranges: Mapping[str, tuple[int, int]]) -> str | None:
    return next((name for name, (low, high) in ranges.items() if low <= value <= high), None)


def _mean_pitch(notes: Sequence[Note], third: int) -> float:
    """The mean pitch in a third of the clip, by duration; NaN in a silent one."""
    start, end = third * CLIP_FRAMES / 3, (third + 1) * CLIP_FRAMES / 3
    lengths: npt.NDArray[np.float64] = np.array([max(0.0, min(n.off, end) - max(n.on, start)) for n in notes])
    if lengths.sum() == 0:
        return float("nan")
    return float(np.average([note.pitch for note in notes], weights=lengths))
