"""band-skills: questions about the house band's clips, balanced so that a model without audio scores chance.

Multiple choice comes in groups: one text, one list of options in one order, and one clip for each option. A model that
gives the same answer to all of a group is right once. Yes and no come in pairs: one text, one clip of which it is true
and one of which it is not. `VERSION` increases with every change of the rules.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tinymusician.house_band.attributes import INSTRUMENTS, TEMPI
from tinymusician.house_band.corpus import Clip
from tinymusician.house_band.question_texts import CAPTIONS, PHRASINGS, UNANSWERABLE, augment_text
from tinymusician.house_band.skills import METERS, SKILLS, Skill
from tinymusician.runtime.audio_lm_bundle import AttributeQuestion
from tinymusician.runtime.prompts import CANNOT_TELL, MAX_LETTERS
from tinymusician.understand.questions import Question, QuestionFormat

VERSION = 6
OPTIONS = 4
TRAINING_OPTIONS = (2, MAX_LETTERS)
"""The numbers of options in training, smallest and largest: every letter is learnt."""
MIXED_SHARE, MIXED_OPTIONS = 0.2, 3
"""The share of training groups that also offer values of another attribute, and at most how many.

They are never right: a model that never saw such options prefers them about as often as the others.
"""
MIN_CLIPS = 8
"""A value that fewer clips of a split have is no option: its questions would be about the same few clips."""


_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "fiddle": ("violin",),
    "church organ": ("organ", "pipe organ"),
    "slow": ("slow tempo", "about 62 beats per minute"),
    "medium": ("medium tempo", "moderate", "about 125 beats per minute"),
    "fast": ("fast tempo", "about 188 beats per minute"),
}
_SYNONYM_SHARE = 0.25
_PROMPT_NAMES: Mapping[str, Mapping[str, str]] = {
    "instrument": {name: value for value in INSTRUMENTS for name in _SYNONYMS.get(value, ())},
    "tempo": {name: value for value in TEMPI for name in _SYNONYMS[value]},
    "key": {
        f"{name} {mode}": f"{tonic} {mode}"
        for name, tonic in (("C#", "Db"), ("D#", "Eb"), ("Gb", "F#"), ("G#", "Ab"), ("A#", "Bb"))
        for mode in ("major", "minor")
    },
}
"""The attributes that prompts state, with other names of their values."""
_OTHER_NAMES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "family": {
        **dict.fromkeys(("string", "strings", "string instrument"), ("bowed strings", "plucked strings")),
        **dict.fromkeys(("wind", "winds", "wind instrument"), ("brass", "woodwind")),
        "keyboards": ("keyboard",),
        "keyboard instrument": ("keyboard",),
        "woodwinds": ("woodwind",),
        "brass instrument": ("brass",),
    },
    "tempo": dict.fromkeys(("quick", "lively", "brisk", "rapid"), ("fast",)),
    "mode": {f"{mode} {word}": (mode,) for mode in ("major", "minor") for word in ("key", "mode", "scale")},
    "meter": {name: (value,) for name, value in METERS.items()},
    "contour": {"rising": ("rises",), "ascending": ("rises",), "falling": ("falls",), "descending": ("falls",)},
    "motion": {"by steps": ("steps",), "stepwise": ("steps",), "by leaps": ("leaps",), "jumps": ("leaps",)},
    "busier_half": {"first": ("first half",), "second": ("second half",)},
}
"""What users may call the answers to a question in its options, with the answers that it covers."""
_PER_WINDOW = ("note_count", "pitch_range", "contour", "busier_half", "highest_note")
"""Attributes of a clip as long as the training's, which longer audio has not."""
_MIN_VALUES = 2
"""An attribute that has the same value in all clips is not asked for."""


@dataclass(frozen=True)
class QuestionCounts:
    """How many questions to write: per attribute groups of multiple choice, pairs of yes and no, and open ones.

    `captions` and `unanswerable` are numbers in all.
    """

    choice_groups: int
    yes_no_pairs: int
    open_questions: int
    captions: int
    unanswerable: int = 0


class ClipPools:
    """By value, the clips that have it; each is given once before any is given again."""

    def __init__(self, values: Mapping[int, str], rng: random.Random) -> None:
        clips: dict[str, list[int]] = {}
        for clip, value in values.items():
            clips.setdefault(value, []).append(clip)
        self._clips = {value: members for value, members in clips.items() if len(members) >= MIN_CLIPS}
        self._queues: dict[str, list[int]] = {value: [] for value in self._clips}
        self._given = dict.fromkeys(self._clips, 0)
        self._rng = rng

    def least_used(self, count: int) -> list[str]:
        """`count` values, those that were given least often first; equal ones in random order."""
        values = sorted(self._clips, key=lambda value: (self._given[value], self._rng.random()))[:count]
        self._rng.shuffle(values)
        return values

    def take(self, value: str) -> int:
        """The next clip with a value."""
        if not self._queues[value]:
            self._queues[value] = self._rng.sample(self._clips[value], len(self._clips[value]))
        self._given[value] += 1
        return self._queues[value].pop()

    @property
    def values(self) -> list[str]:
        """The values that enough clips have."""
        return list(self._clips)


def training_questions(clips: Sequence[Clip], counts: QuestionCounts, seed: int) -> list[Question]:
    """Questions of every attribute and format, in random order, with synonyms among the answers."""
    rng = random.Random(f"band-skills/{VERSION}/{seed}/train")
    questions = []
    for skill in SKILLS.values():
        pools, texts = ClipPools(clip_values(skill, clips), rng), PHRASINGS[skill.name].texts
        if len(pools.values) < _MIN_VALUES:
            continue
        for _ in range(counts.choice_groups):
            others = _mixed_options(skill, rng) if rng.random() < MIXED_SHARE else ()
            size = rng.randint(TRAINING_OPTIONS[0], min(TRAINING_OPTIONS[1] - len(others), len(pools.values)))
            text = augment_text(rng.choice(texts), rng)
            questions += _choice_group(skill, pools, clips, text, rng, _SYNONYM_SHARE, size, others)
        for _ in range(counts.yes_no_pairs):
            questions += _yes_no_pair(skill, pools, clips, rng, _SYNONYM_SHARE)
        questions += _open_questions(skill, pools, clips, texts, counts.open_questions, rng)
    questions += _captions(clips, counts.captions, rng)
    questions += _unanswerable(clips, counts.unanswerable, rng)
    rng.shuffle(questions)
    return questions


def hard_questions(clips: Sequence[Clip], groups: int, seed: int, has_new_phrasings: bool = True) -> list[Question]:
    """Multiple choice with distractors of the same attribute.

    With `has_new_phrasings`, every third group has the phrasing that training never uses. Each attribute has `groups`
    groups of four; those with fewer answers have as many questions in smaller groups.
    """
    rng = random.Random(f"band-skills/{VERSION}/{seed}/hard")
    questions: list[Question] = []
    for skill in SKILLS.values():
        pools, phrasing = ClipPools(clip_values(skill, clips), rng), PHRASINGS[skill.name]
        size = min(OPTIONS, len(pools.values))
        for number in range(groups * OPTIONS // size if size >= _MIN_VALUES else 0):
            is_new = has_new_phrasings and number % 3 == 2
            new = phrasing.held_out[number // 3 % len(phrasing.held_out)]
            text = new if is_new else rng.choice(phrasing.texts)
            questions += _choice_group(skill, pools, clips, text, rng, 0.0, size)
    return _numbered(questions)


def attribute_questions() -> tuple[AttributeQuestion, ...]:
    """The question about every attribute, for a bundle's manifest."""
    return tuple(
        AttributeQuestion(
            attribute=name,
            text=PHRASINGS[name].sentences[0],
            options=skill.answers,
            per_window=name in _PER_WINDOW,
            in_prompts=name in _PROMPT_NAMES,
            synonyms=dict(_PROMPT_NAMES.get(name, {})),
            other_names=dict(_OTHER_NAMES.get(name, {})),
            finer=skill.finer,
        )
        for name, skill in SKILLS.items()
    )


def caption_of(clip: Clip) -> str:
    """The facts of a clip that can be heard, in one sentence."""
    pace = f"{value} " if (value := SKILLS["tempo"].value(clip)) is not None else ""
    where = f" in {value}" if (value := SKILLS["key"].value(clip)) is not None else ""
    return f"a {pace}melody{where}, played on the {clip.facts.instrument}"


def clip_values(skill: Skill, clips: Sequence[Clip]) -> dict[int, str]:
    """By the number of a clip, its value of an attribute; clips where it cannot be heard are left out."""
    values = ((index, skill.value(clip)) for index, clip in enumerate(clips))
    return {index: value for index, value in values if value is not None}


def other_skills(skill: Skill) -> list[Skill]:
    """The attributes of which no value answers a question about `skill`."""
    return [other for other in SKILLS.values() if not set(other.answers) & set(skill.answers)]


def _mixed_options(skill: Skill, rng: random.Random) -> tuple[str, ...]:
    """Values of another attribute."""
    answers = rng.choice(other_skills(skill)).answers
    return tuple(rng.sample(answers, rng.randint(1, min(MIXED_OPTIONS, len(answers)))))


def _choice_group(
    skill: Skill,
    pools: ClipPools,
    clips: Sequence[Clip],
    text: str,
    rng: random.Random,
    synonyms: float,
    size: int,
    others: tuple[str, ...] = (),
) -> list[Question]:
    values = pools.least_used(size)
    answers = tuple(_name_of(value, rng, synonyms) for value in values)
    options = tuple(rng.sample([*answers, *others], len(answers) + len(others))) if others else answers
    return [
        Question(
            format="choice",
            attribute=skill.name,
            clip=(clip := pools.take(value)),
            tune=clips[clip].family,
            text=text,
            options=options,
            answer=answer,
            value=value,
        )
        for value, answer in zip(values, answers, strict=True)
    ]


def _yes_no_pair(
    skill: Skill, pools: ClipPools, clips: Sequence[Clip], rng: random.Random, synonyms: float
) -> Iterator[Question]:
    value, other = pools.least_used(2)
    text = augment_text(rng.choice(PHRASINGS[skill.name].yes_no).format(_name_of(value, rng, synonyms)), rng)
    for answer, true_value in (("yes", value), ("no", other)):
        clip = pools.take(true_value)
        tune = clips[clip].family
        stated = _finest_value(skill, clips[clip]) or true_value
        yield Question(
            format="yes_no", attribute=skill.name, clip=clip, tune=tune, text=text, answer=answer, value=stated
        )


def _finest_value(skill: Skill, clip: Clip) -> str | None:
    """The value that is stated before yes or no: the key where the mode is asked for."""
    return None if skill.finer is None else SKILLS[skill.finer.attribute].value(clip)


def _open_questions(
    skill: Skill, pools: ClipPools, clips: Sequence[Clip], texts: Sequence[str], count: int, rng: random.Random
) -> Iterator[Question]:
    for _ in range(count):
        (value,) = pools.least_used(1)
        clip = pools.take(value)
        tune = clips[clip].family
        text = augment_text(rng.choice(texts), rng)
        yield Question(format="open", attribute=skill.name, clip=clip, tune=tune, text=text, answer=value, value=value)


def _captions(clips: Sequence[Clip], count: int, rng: random.Random) -> Iterator[Question]:
    for _ in range(count):
        clip = rng.randrange(len(clips))
        yield _about_clip(
            "caption", "caption", clips, clip, augment_text(rng.choice(CAPTIONS), rng), caption_of(clips[clip])
        )


def _unanswerable(clips: Sequence[Clip], count: int, rng: random.Random) -> Iterator[Question]:
    """Questions that no clip answers: what the model does not know, it does not invent."""
    for _ in range(count):
        clip, text = rng.randrange(len(clips)), augment_text(rng.choice(UNANSWERABLE), rng)
        yield _about_clip("open", "unanswerable", clips, clip, text, CANNOT_TELL)


def _about_clip(
    form: QuestionFormat, attribute: str, clips: Sequence[Clip], clip: int, text: str, answer: str
) -> Question:
    tune = clips[clip].family
    return Question(format=form, attribute=attribute, clip=clip, tune=tune, text=text, answer=answer)


def _name_of(value: str, rng: random.Random, synonyms: float) -> str:
    return rng.choice(_SYNONYMS[value]) if value in _SYNONYMS and rng.random() < synonyms else value


def _numbered(questions: Sequence[Question]) -> list[Question]:
    """The questions with the numbers of their groups: neighbours that share text and options."""
    numbered: list[Question] = []
    group, left = -1, 0
    for question in questions:
        if left == 0:
            group, left = group + 1, len(question.options)
        numbered.append(question.model_copy(update={"group": group}))
        left -= 1
    return numbered
