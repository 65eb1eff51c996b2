"""MuChoMusic's kinds of distractors: what each option is, and that a reader of the text alone can rule out two."""

from __future__ import annotations

from tests.unit.test_questions import corpus
from tinymusician.house_band.mucho_questions import mucho_questions
from tinymusician.house_band.skills import SKILLS


def test_options_are_of_three_kinds() -> None:
    clips = corpus()
    questions = mucho_questions(clips, 20, seed=0)
    assert {question.attribute for question in questions} >= {"instrument", "tempo", "key", "mode"}
    positions = set()
    for question in questions:
        clip, skill = clips[question.clip], SKILLS[question.attribute]
        related = [option for option in question.options if option in skill.answers]
        others = [option for option in question.options if option not in skill.answers]
        assert len(set(question.options)) == 4
        assert question.answer == skill.value(clip)
        assert question.answer in related
        (attribute,) = {name for name, other in SKILLS.items() if set(others) <= set(other.answers)}
        assert sorted(option == SKILLS[attribute].value(clip) for option in others) == [False, True]
        positions.add(question.options.index(question.answer))
    assert positions == {0, 1, 2, 3}
    assert mucho_questions(clips, 20, seed=0) == questions != mucho_questions(clips, 20, seed=1)
