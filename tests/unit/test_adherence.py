"""Adherence: its scores by hand, and the judge's answers against the engine's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.test_answers import COLOURS
from tests.unit.test_question_answerer import QUESTIONS as ALL_QUESTIONS
from tests.unit.test_question_answerer import new_model, write_bundle
from tinymusician.evaluate.adherence import adherence_scores
from tinymusician.evaluate.judge import QuestionJudge
from tinymusician.quantize.precision import load_plan
from tinymusician.runtime.audio_lm_bundle import AttributeQuestion
from tinymusician.runtime.question_answerer import QuestionAnswerer

COLOUR = AttributeQuestion(
    attribute="colour", text="Which?", options=("red", "green"), in_prompts=True, synonyms={"crimson": "red"}
)


def test_scores_of_the_clips_whose_prompt_claims_something() -> None:
    probabilities = {"colour": np.array([[0.9, 0.1], [0.4, 0.5], [0.2, 0.7]], np.float32)}
    prompts = ["crimson", "nothing", "red or green", "a red one", "green"]
    scores = adherence_scores(probabilities, np.array([0, 3, 4]), prompts, [COLOUR])
    assert scores["colour"].clips == 3
    assert scores["colour"].probability.value == pytest.approx((0.9 + 0.4 + 0.7) / 3)
    assert scores["colour"].top.value == pytest.approx(2 / 3)
    assert adherence_scores(probabilities, np.array([1, 2]), prompts, [COLOUR]) == {}


def test_judge_answers_as_the_engine(tmp_path: Path) -> None:
    """Short clips are repeated, samples that are not finite are silence; only what prompts state is asked for."""
    claimable = ALL_QUESTIONS[0].model_copy(update={"in_prompts": True})
    folder = write_bundle(tmp_path, new_model(), load_plan("float32"), (claimable, ALL_QUESTIONS[1]))
    judge, engine = QuestionJudge(folder), QuestionAnswerer(folder)
    wave = np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)
    broken = np.tile(wave, 4)
    broken[7] = np.nan
    answers = judge([np.tile(wave, 4), wave, broken])
    assert list(answers) == ["colour"]
    for row, clip in enumerate((np.tile(wave, 4), np.tile(wave, 2), np.nan_to_num(broken))):
        answer = engine.choose(engine.read(clip), "Which?", COLOURS)
        expected = [option.probability * (1 - answer.cannot_tell) for option in answer.options]
        np.testing.assert_allclose(answers["colour"][row], expected, rtol=1e-5)
    assert judge.facts["name"] == "tiny-mu"
