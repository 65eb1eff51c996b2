"""Answers that follow from a finer attribute: sums of its probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.test_answers import COLOURS, choice
from tinymusician.house_band.skill_questions import attribute_questions
from tinymusician.runtime.answers import OptionProbabilities, summed
from tinymusician.runtime.audio_lm_bundle import AttributeQuestion, FinerAttribute
from tinymusician.runtime.finer_attributes import finer_question
from tinymusician.understand.answering import FinerAnswerer
from tinymusician.understand.questions import Question

WARMTH = FinerAttribute(attribute="colour", values={"warm": ("red", "yellow"), "cold": ("blue",), "neither": ("grey",)})
QUESTIONS = (
    AttributeQuestion(attribute="warmth", text="How warm?", options=("warm", "cold", "neither"), finer=WARMTH),
    AttributeQuestion(attribute="colour", text="Which colour?", options=("red", "blue", "yellow", "grey")),
)
SHARES = (0.1, 0.5, 0.3, 0.1)


class Eyes:
    """Always gives the four colours the same probabilities, and the first of other options all."""

    def __init__(self) -> None:
        self.questions: list[Question] = []

    def probabilities(self, features: np.ndarray | None, questions: list[Question]) -> list[OptionProbabilities]:
        self.questions = questions
        first = (1.0, *[0.0] * (len(questions[0].options) - 1))
        return [OptionProbabilities(SHARES if q.options == QUESTIONS[1].options else first, 0.25) for q in questions]

    def generate(self, features: np.ndarray | None, prompts: list[str]) -> list[str]:
        return prompts


@pytest.mark.parametrize(
    ("options", "sums"),
    [
        (("cold", "warm", "neither"), (0.5, 0.4, 0.1)),
        (("Warm ", "NEITHER"), (0.8, 0.2)),
    ],
)
def test_probabilities_are_sums_of_the_finer_ones(options: tuple[str, ...], sums: tuple[float, ...]) -> None:
    question = finer_question(options, QUESTIONS)
    assert question is not None
    assert question.question.attribute == "colour"
    assert summed(SHARES, question.members) == pytest.approx(sums)
    assert summed((0.0, 0.0, 0.0, 0.0), question.members) == pytest.approx([1 / len(options)] * len(options))


@pytest.mark.parametrize("options", [("warm", "loud"), ("red", "blue"), ("warm", "cold", "red")])
def test_other_options_follow_from_nothing(options: tuple[str, ...]) -> None:
    assert finer_question(options, QUESTIONS) is None


def test_without_the_finer_question_options_are_judged_by_their_texts() -> None:
    assert finer_question(("warm", "cold"), QUESTIONS[:1]) is None


def test_benchmark_answers_as_bundles_do() -> None:
    warmth = choice(0).model_copy(update={"options": ("cold", "warm"), "answer": "cold"})
    eyes = Eyes()
    cold, plain = FinerAnswerer(eyes, QUESTIONS).probabilities(None, [warmth, choice(1)])
    assert cold.options == pytest.approx((0.5 / 0.9, 0.4 / 0.9))
    assert cold.cannot_tell == 0.25
    assert plain.options[0] == 1.0
    assert [question.text for question in eyes.questions] == ["Which colour?", choice(1).text]
    assert eyes.questions[1].options == COLOURS


def test_every_key_is_of_one_mode_and_every_instrument_of_one_family() -> None:
    by_name = {question.attribute: question for question in attribute_questions()}
    for coarse, fine in (("mode", "key"), ("family", "instrument")):
        finer = by_name[coarse].finer
        assert finer is not None
        assert finer.attribute == fine
        assert tuple(finer.values) == by_name[coarse].options
        members = [value for values in finer.values.values() for value in values]
        assert sorted(members) == sorted(by_name[fine].options)
