"""Bundles as answerers, and the choice of precisions by accuracy."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tests.unit.test_answers import choice
from tests.unit.test_question_answerer import TOKENIZER, new_model, wave, write_bundle
from tinymusician.errors import PlanError
from tinymusician.quantize.precision import PrecisionPlan, load_plan
from tinymusician.settings import Precision
from tinymusician.understand.answering import TorchAnswerer
from tinymusician.understand.bundle_answerer import BundleAnswerer
from tinymusician.understand.plan_search import PRECISIONS, PlanScore, PlanScorer, score_uniform_plan, search_plan

CLIPS = 6
WAVES = np.stack([wave(0.6, seed) for seed in range(CLIPS)])
QUESTIONS = [choice(clip) for clip in range(CLIPS)]
BASE = PrecisionPlan(name="accuracy", block_size=32)


def test_bundle_answers_as_pytorch(tmp_path: Path) -> None:
    model = new_model()
    bundle = BundleAnswerer(write_bundle(tmp_path, model, load_plan("float32")), 1)
    reference = TorchAnswerer(model, TOKENIZER)
    features = np.concatenate([reference.features(clip[None]) for clip in WAVES])
    expected = reference.probabilities(features, QUESTIONS)
    results = bundle.probabilities(bundle.embed(WAVES), QUESTIONS)
    for one, other in zip(results, expected, strict=True):
        np.testing.assert_allclose(one.options, other.options, atol=1e-4)
        assert one.cannot_tell == pytest.approx(other.cannot_tell, abs=1e-4)
    prompts = [question.prompt for question in QUESTIONS]
    assert bundle.generate(bundle.embed(WAVES), prompts) == reference.generate(features, prompts)


def test_score_is_the_share_of_right_answers() -> None:
    model = new_model()
    reference = TorchAnswerer(model, TOKENIZER)
    results = reference.probabilities(reference.features(WAVES), QUESTIONS)
    right = [q.options[result.choice] == q.answer for q, result in zip(QUESTIONS, results, strict=True)]
    scorer = PlanScorer(model, TOKENIZER.to_str(), WAVES, QUESTIONS, threads=1)
    float32 = scorer.score(load_plan("float32"))
    assert float32.accuracy == np.mean(right)
    assert scorer.score(PrecisionPlan(name="small", default="int8", block_size=32)).size < float32.size
    lm = sum(parameter.numel() for parameter in model.lm.model.layers[0].parameters())
    norms = 2 * model.shape.lm.width
    assert scorer.group_sizes()["layers.0"] == 4 * (lm - norms)


SIZES = {"encoder": 4000, "projector": 800, "layers.0": 2400, "embeddings": 1600}
LOST = {
    "encoder": {"float16": 0.0, "int8": 0.004, "int4": 0.06},
    "projector": {"float16": 0.001, "int8": 0.001, "int4": 0.002},
    "layers.0": {"float16": 0.0, "int8": 0.002, "int4": 0.005},
    "embeddings": {"float16": 0.0, "int8": 0.0, "int4": 0.02},
}


class Additive(PlanScorer):
    """A scorer whose groups cost what a table says: the search's result can then be computed by trying all plans."""

    def __init__(self) -> None:
        pass

    def group_sizes(self) -> dict[str, int]:
        return dict(SIZES)

    def score(self, plan: PrecisionPlan) -> PlanScore:
        share = {"float32": 1.0, "float16": 0.5, "int8": 0.25, "int4": 0.125}
        size = sum(round(size * share[plan.of(group)]) for group, size in SIZES.items())
        lost = sum(LOST[group].get(plan.of(group), 0.0) for group in SIZES)
        return PlanScore(1000 + size, 0.9 - lost)


def test_search_finds_a_small_plan_within_the_budget() -> None:
    """Near the smallest of all plans: the relaxation considers those that are best at some price."""
    scorer, budget = Additive(), 0.01
    result = search_plan(scorer, BASE, budget)
    names = list(SIZES)
    options: tuple[Precision, ...] = ("float32", *PRECISIONS)
    plans = [
        BASE.model_copy(update={"groups": dict(zip(names, each, strict=True))}) for each in product(options, repeat=4)
    ]
    fitting = [scorer.score(plan) for plan in plans if 0.9 - scorer.score(plan).accuracy <= budget + 1e-9]
    assert result.chosen.size <= 1.15 * min(score.size for score in fitting)
    assert result.float32.accuracy - result.chosen.accuracy <= budget + 1e-9
    assert result.plan.groups["encoder"] != "int4"
    assert result.table["encoder"]["int8"].size == 1000


def test_budget_that_nothing_meets_is_refused() -> None:
    with pytest.raises(PlanError, match="no plan stays within it"):
        search_plan(Additive(), BASE, -1.0)


def test_one_precision_for_all_weights() -> None:
    result = score_uniform_plan(Additive(), BASE, "int8")
    assert result.plan.groups == dict.fromkeys(SIZES, "int8")
    assert result.chosen.size == 1000 + sum(SIZES.values()) // 4
    assert (result.float32.accuracy, round(result.chosen.accuracy, 3)) == (0.9, 0.893)
