"""Questions: prompts and parsers of the published benchmark, and band-skills, which needs audio to be answered."""

from __future__ import annotations

import random
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

from tinymusician.house_band.attributes import INSTRUMENTS, ClipAttributes
from tinymusician.house_band.corpus import Clip
from tinymusician.house_band.question_texts import (
    CAPTIONS,
    PHRASINGS,
    UNANSWERABLE,
    UNANSWERABLE_HELD_OUT,
    augment_text,
)
from tinymusician.house_band.skill_labels import attribute_labels, onset_labels, pitch_labels
from tinymusician.house_band.skill_questions import (
    QuestionCounts,
    caption_of,
    hard_questions,
    training_questions,
)
from tinymusician.house_band.skills import KEYS, SKILLS, estimate_key
from tinymusician.house_band.synth import Note
from tinymusician.runtime.prompts import build_prompt
from tinymusician.understand.questions import (
    Question,
    official_choice,
    strict_choice,
    write_questions,
)

OPTIONS = ("piano", "banjo", "flute", "trumpet")
SCALE = (60, 62, 64, 65, 67, 69, 71, 72)


def clip(pitches: tuple[int, ...] = SCALE, length: int = 25, meter: str = "4/4", **facts: object) -> Clip:
    given = {"title": "A Reel", "start": 0.0, "instrument": "flute", "tempo": "medium", "kind": "reel"}
    attributes = ClipAttributes(**{**given, "tonic": 0, "mode": "major", **facts})
    notes = tuple(Note(i * length, (i + 1) * length - 1, p) for i, p in enumerate(pitches) if i * length < 250)
    return Clip(attributes, "", notes, meter, family=attributes.title)


def corpus() -> list[Clip]:
    """Clips of every instrument, tempo, key and mode, whose notes are the key's scale."""
    clips = []
    for number in range(288):
        tonic, mode = number % 12, ("major", "minor")[number // 12 % 2]
        steps = (0, 2, 4, 5, 7, 9, 11, 12) if mode == "major" else (0, 2, 3, 5, 7, 8, 11, 12)
        rising = tuple(60 + tonic + step for step in (*steps, *steps[::-1]))
        pitches = (rising, rising[::-1], rising[:8], rising[8:], rising[::2])[number // 24 % 5] * (1 + number % 3)
        tempo = ("slow", "medium", "fast")[number % 3]
        instrument = list(INSTRUMENTS)[number // 3 % 6]
        facts = {"tonic": tonic, "mode": mode, "tempo": tempo, "instrument": instrument, "title": f"tune {number // 4}"}
        length = (7, 12, 20, 45)[number // 7 % 4]
        clips.append(clip(pitches, length, ("4/4", "3/4", "6/8")[number // 5 % 3], **facts))
    return clips


def test_prompt_is_muchomusics() -> None:
    assert build_prompt("Which?", OPTIONS) == (
        "Question: Which?\n Options: (A) piano (B) banjo (C) flute (D) trumpet \n The correct answer is:"
    )


@pytest.mark.parametrize(
    ("output", "official", "strict"),
    [
        (" (C) flute", 2, 2),
        ("flute", 2, 2),
        ("flute (C)", 2, None),
        ("(C)", 2, None),
        ("flute (B)", 1, None),
        ("C", 2, None),
        ("The correct answer is: (B) banjo", 1, None),
        ("(C) trumpet", 2, None),
        ("it is the trumpet", 3, None),
        ("A trumpet plays", 0, None),
        ("(A) or (B)", None, None),
        ("(A) or (B), the flute", 2, None),
        ("a violin", None, None),
        ("", None, None),
        ("(E) harp", None, None),
    ],
)
def test_parsers(output: str, official: int | None, strict: int | None) -> None:
    assert official_choice(output, OPTIONS) == official
    assert strict_choice(output, OPTIONS) == strict


def test_questions_survive_their_file(tmp_path: Path) -> None:
    questions = hard_questions(corpus(), 2, seed=0)
    digest = write_questions(tmp_path / "q.jsonl", questions)
    lines = (tmp_path / "q.jsonl").read_text("utf-8").splitlines()
    assert [Question.model_validate_json(line) for line in lines] == questions
    assert write_questions(tmp_path / "again.jsonl", hard_questions(corpus(), 2, seed=0)) == digest
    assert write_questions(tmp_path / "other.jsonl", hard_questions(corpus(), 2, seed=1)) != digest


def test_same_answer_to_a_whole_group_is_right_once() -> None:
    """So a model that cannot hear, which gives equal texts equal answers, scores exactly chance."""
    questions = hard_questions(corpus(), 6, seed=0)
    assert {"instrument", "tempo", "key", "mode", "meter", "contour"} <= {question.attribute for question in questions}
    for _, members in groupby(questions, key=lambda question: question.group):
        group = list(members)
        assert len({(question.text, question.options) for question in group}) == 1
        assert [question.answer for question in group] == list(group[0].options)
        assert len({question.clip for question in group}) == len(group)


def test_training_has_every_number_of_options() -> None:
    questions = training_questions(corpus(), QuestionCounts(40, 1, 1, 0), seed=0)
    sizes = {len(question.options) for question in questions if question.attribute == "key" and question.options}
    assert sizes == {2, 3, 4, 5, 6, 7, 8}


def test_a_share_of_training_offers_values_of_one_other_attribute_that_are_never_right() -> None:
    questions = training_questions(corpus(), QuestionCounts(60, 1, 1, 0), seed=0)
    keys = [question for question in questions if question.attribute == "key" and question.options]
    mixed = [question for question in keys if not set(question.options) <= set(KEYS)]
    assert 0.1 < len(mixed) / len(keys) < 0.3
    for question in mixed:
        others = [option for option in question.options if option not in KEYS]
        assert question.answer in KEYS
        assert len(others) <= 3
        assert any(set(others) <= set(skill.answers) for skill in SKILLS.values())
    assert {question.options.index(question.answer) for question in mixed} >= {0, 1, 2, 3}


def test_new_phrasings_are_in_the_test_only() -> None:
    new = {text for phrasing in PHRASINGS.values() for text in phrasing.held_out}
    training = training_questions(corpus(), QuestionCounts(200, 20, 200, 20), seed=0)
    validation = hard_questions(corpus(), 6, seed=0, has_new_phrasings=False)
    assert not {plain(text) for text in new} & {plain(question.text) for question in (*training, *validation)}
    offered = {question.text for question in hard_questions(corpus(), 30, seed=0)} & new
    attributes = {question.attribute for question in hard_questions(corpus(), 6, seed=0)}
    assert offered == {text for name in attributes for text in PHRASINGS[name].held_out}
    assert not {plain(text) for text in UNANSWERABLE_HELD_OUT} & {plain(text) for text in UNANSWERABLE}


def plain(text: str) -> str:
    """A text without what `augment_text` varies."""
    return text.lower().rstrip("?.")


def test_texts_vary_in_how_they_are_written() -> None:
    rng = random.Random(0)
    texts = Counter(augment_text("Which key is it?", rng) for _ in range(1000))
    assert texts["Which key is it?"] > 400
    assert {"which key is it?", "which key is it", "Which key is it", "Please: which key is it?"} <= set(texts)


def test_no_text_belongs_to_two_attributes() -> None:
    """A question has one meaning, also after it has lost its mark and its capitals."""
    texts = [plain(text) for phrasing in PHRASINGS.values() for text in (*phrasing.texts, *phrasing.held_out)]
    assert len(texts) == len(set(texts))
    assert not [text for text in (*UNANSWERABLE, *UNANSWERABLE_HELD_OUT) if "tempo" in text or "BPM" in text]
    for phrasing in PHRASINGS.values():
        assert not {*map(plain, UNANSWERABLE), *map(plain, CAPTIONS)} & {plain(text) for text in phrasing.texts}


def test_what_no_clip_answers() -> None:
    questions = training_questions(corpus(), QuestionCounts(1, 1, 1, 0, 40), seed=0)
    unanswerable = [question for question in questions if question.attribute == "unanswerable"]
    assert len(unanswerable) == 40
    assert {question.target for question in unanswerable} == {"cannot tell"}
    assert len({question.text for question in unanswerable}) > 20


def test_options_are_right_as_often_as_they_are_offered() -> None:
    questions = hard_questions(corpus(), 30, seed=0)
    for attribute in ("instrument", "tempo", "key", "mode"):
        selected = [question for question in questions if question.attribute == attribute]
        offered = Counter(option for question in selected for option in question.options)
        right = Counter(question.answer for question in selected)
        assert all(offered[option] == right[option] * len(selected[0].options) for option in offered)
        assert max(right.values()) - min(right.values()) <= len(selected) // 20


def test_yes_and_no_are_equally_often_right() -> None:
    questions = training_questions(corpus(), QuestionCounts(2, 10, 3, 5), seed=0)
    by_text: dict[tuple[str, str], Counter[str]] = {}
    for question in questions:
        if question.format == "yes_no":
            by_text.setdefault((question.attribute, question.text), Counter())[question.answer] += 1
    assert all(count["yes"] == count["no"] for count in by_text.values())
    assert Counter(question.format for question in questions)["caption"] == 5


def test_yes_and_no_begin_with_the_value_of_the_clip() -> None:
    clips = corpus()
    for question in training_questions(clips, QuestionCounts(1, 10, 1, 0), seed=0):
        if question.format == "yes_no":
            stated = {"mode": "key", "family": "instrument"}.get(question.attribute, question.attribute)
            assert question.value == SKILLS[stated].value(clips[question.clip])
            assert question.target == f"{question.value}, so {question.answer}"


def test_answers_are_the_clips_facts() -> None:
    clips = corpus()
    for question in hard_questions(clips, 10, seed=3):
        assert SKILLS[question.attribute].value(clips[question.clip]) == question.answer


def test_key_that_the_notes_do_not_show_has_no_question() -> None:
    assert SKILLS["key"].value(clip(SCALE)) == "C major"
    assert estimate_key(clip(tuple(pitch + 7 for pitch in SCALE)).notes) == "G major"
    assert SKILLS["key"].value(clip(tuple(pitch + 7 for pitch in SCALE))) is None
    assert SKILLS["mode"].value(clip(tuple(pitch + 7 for pitch in SCALE))) is None


@pytest.mark.parametrize(
    ("skill", "value", "changes"),
    [
        ("contour", "rises", {}),
        ("contour", "falls", {"pitches": SCALE[::-1]}),
        ("contour", "rises, then falls", {"pitches": (60, 62, 64, 72, 72, 72, 64, 62, 60, 60)}),
        ("contour", "falls, then rises", {"pitches": (72, 71, 69, 60, 60, 60, 69, 71, 72, 72)}),
        ("contour", None, {"pitches": (60,) * 8}),
        ("motion", "steps", {}),
        ("motion", "leaps", {"pitches": (60, 67, 60, 72, 60, 65, 60, 69)}),
        ("pitch_range", "between a fifth and an octave", {}),
        ("pitch_range", "at most a fifth", {"pitches": (60, 62, 64, 65, 67, 65)}),
        ("pitch_range", None, {"pitches": (60, 62, 64, 65, 67, 68)}),
        ("note_count", "fewer than 9", {"pitches": (60, 62, 64, 65)}),
        ("note_count", None, {}),
        ("busier_half", "first half", {"length": 15}),
        ("busier_half", None, {"pitches": (*SCALE, 72, 74)}),
        ("meter", "duple", {"tempo": "fast"}),
        ("meter", "compound", {"meter": "6/8", "tempo": "fast"}),
        ("meter", None, {"tempo": "slow"}),
        ("meter", None, {"meter": "5/4"}),
        ("tempo", None, {"pitches": (60, 62, 64)}),
        ("highest_note", "C", {}),
        ("highest_note", None, {"pitches": (60, 62, 64, 65, 67, 69, 80), "length": 41}),
        ("family", "woodwind", {}),
    ],
)
def test_skills(skill: str, value: str | None, changes: dict[str, object]) -> None:
    assert SKILLS[skill].value(clip(**changes)) == value  # type: ignore[arg-type]


def test_caption_states_only_audible_facts() -> None:
    assert caption_of(clip()) == "a medium melody in C major, played on the flute"
    assert caption_of(clip(tuple(pitch + 7 for pitch in SCALE))) == "a medium melody, played on the flute"


def test_step_labels_are_the_pitches_that_sound_longest() -> None:
    notes = (Note(0, 7, 60), Note(8, 11, 62), Note(11, 16, 64))
    (steps,) = pitch_labels([Clip(clip().facts, "", notes)], 4)
    assert steps.tolist() == [60 - 54, 64 - 54, 0, 0]
    (onsets,) = onset_labels([Clip(clip().facts, "", notes)], 4)
    assert onsets.tolist() == [[1, *[0] * 7], [1, 0, 0, 1, *[0] * 4], [0] * 8, [0] * 8]
    (labels,) = attribute_labels([clip()])
    assert labels[list(SKILLS).index("instrument")] == list(INSTRUMENTS).index("flute")


def test_rotation_moves_options_and_keeps_the_answer() -> None:
    question = Question(
        format="choice", attribute="instrument", clip=0, tune="t", text="Which?", options=OPTIONS, answer="flute"
    )
    assert question.target == "flute"
    assert question.rotated(1).options == ("banjo", "flute", "trumpet", "piano")
    assert question.rotated(1).target == "flute"
