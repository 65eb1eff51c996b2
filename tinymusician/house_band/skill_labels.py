"""Labels of the house band's clips for fine-tuning an audio encoder: of attributes, and of time steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinymusician.house_band.corpus import Clip
from tinymusician.house_band.skills import SKILLS
from tinymusician.house_band.synth import LOWEST, Note
from tinymusician.understand.attribute_task import IGNORE_INDEX, Labels

CLASSES = {name: len(skill.answers) for name, skill in SKILLS.items()}
"""The number of classes of every attribute."""
FRAMES_PER_STEP = 8
MAX_LABELLED_PITCH = 100
NUM_PITCH_CLASSES = MAX_LABELLED_PITCH - LOWEST + 2
"""Class 0 is silence, the others are pitches from the lowest note of the band on."""


def attribute_labels(clips: Sequence[Clip]) -> Labels:
    """The class of every attribute of every clip, [N, attributes]; `IGNORE_INDEX` where it cannot be heard."""
    return np.array([[_class_of(name, clip) for name in SKILLS] for clip in clips], np.int64)


def pitch_labels(clips: Sequence[Clip], steps: int) -> Labels:
    """The pitch that sounds longest in every step of eight codec frames (160 ms), [N, steps]."""
    return np.stack([_pitches(clip.notes, steps) for clip in clips])


def onset_labels(clips: Sequence[Clip], steps: int) -> Labels:
    """Whether a note begins, 0 or 1, in each codec frame (20 ms) of every step, [N, steps, 8]."""
    return np.stack([_onsets(clip.notes, steps) for clip in clips])


def _class_of(name: str, clip: Clip) -> int:
    value = SKILLS[name].value(clip)
    return IGNORE_INDEX if value is None else SKILLS[name].answers.index(value)


def _onsets(notes: Sequence[Note], steps: int) -> Labels:
    frames = np.zeros(steps * FRAMES_PER_STEP, np.int64)
    frames[[note.on for note in notes]] = 1
    return frames.reshape(steps, FRAMES_PER_STEP)


def _pitches(notes: Sequence[Note], steps: int) -> Labels:
    frames = np.zeros(steps * FRAMES_PER_STEP, np.int64)
    for note in notes:
        frames[note.on : note.off] = note.pitch - LOWEST + 1
    return np.array([np.bincount(step).argmax() for step in frames.reshape(steps, FRAMES_PER_STEP)], np.int64)
