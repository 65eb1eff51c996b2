"""Chooses the precisions of a bundle that answers questions: the fewest bytes that cost at most a share of accuracy.

The planner is that of generation bundles (`tinymusician.quantize.sensitivity`), with another measure: what a group in a
precision costs is the accuracy that is lost on validation questions, where generation bundles count KL.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from tinymusician.models.audio_lm import AudioLM
from tinymusician.quantize.adaptive import trials
from tinymusician.quantize.apply import WEIGHTED
from tinymusician.quantize.audio_lm_bundle import BundleFacts, group_of, write_graphs, write_manifest
from tinymusician.quantize.precision import FRONT_END, PrecisionPlan
from tinymusician.quantize.sensitivity import GroupSensitivity, Table, choose
from tinymusician.runtime.answers import Floats
from tinymusician.runtime.audio_lm_bundle import AttributeQuestion
from tinymusician.settings import Precision
from tinymusician.understand.answering import FinerAnswerer
from tinymusician.understand.benchmark import is_right
from tinymusician.understand.bundle_answerer import BundleAnswerer
from tinymusician.understand.questions import Question, clip_rows

PRECISIONS: tuple[Precision, ...] = ("float16", "int8", "int4")
_GRAPHS = ("audio_encoder.onnx", "lm.onnx")


@dataclass(frozen=True)
class PlanScore:
    """The bytes of a plan's graphs, and the share of right answers."""

    size: int
    accuracy: float


@dataclass(frozen=True)
class PlanSearchResult:
    """The chosen plan with its score, that of float32, and what each group alone costs in each precision."""

    plan: PrecisionPlan
    chosen: PlanScore
    float32: PlanScore
    table: Table


class PlanScorer:
    """Scores plans on questions about clips [clips, N]; a question's `clip` is a row of them."""

    def __init__(
        self,
        model: AudioLM,
        tokenizer_json: str,
        waves_BN: Floats,
        questions: Sequence[Question],
        attributes: Sequence[AttributeQuestion] = (),
        threads: int = 0,
    ) -> None:
        self._model, self._tokenizer, self._attributes, self._threads = model, tokenizer_json, attributes, threads
        clips, self._rows = clip_rows(questions)
        self._waves, self._questions = waves_BN[clips], questions

    def score(self, plan: PrecisionPlan) -> PlanScore:
        """Write the bundle of a plan, and answer all questions with it."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_graphs(self._model, plan, self._tokenizer, folder)
            write_manifest(self._model, plan, folder, BundleFacts("trial", 1.0, (), {}, {}, "", {}))
            bundle = BundleAnswerer(folder, self._threads)
            features = bundle.embed(self._waves)[self._rows]
            results = FinerAnswerer(bundle, self._attributes).probabilities(features, self._questions)
            size = sum((folder / graph).stat().st_size for graph in _GRAPHS)
            return PlanScore(size, float(is_right(self._questions, results).mean()))

    def group_sizes(self) -> dict[str, int]:
        """The bytes of every group's weights in float32, without the front end's."""
        sizes: dict[str, int] = {}
        with tempfile.TemporaryDirectory() as name:
            write_graphs(self._model, PrecisionPlan(name="float32"), self._tokenizer, Path(name))
            for graph in _GRAPHS:
                model = onnx.load(str(Path(name) / graph))
                weights = {tensor.name: 4 * int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
                for node in model.graph.node:
                    if node.op_type in WEIGHTED and (size := sum(weights.get(name, 0) for name in node.input)):
                        sizes[group_of(node.name)] = sizes.get(group_of(node.name), 0) + size
        return {group: size for group, size in sizes.items() if group != FRONT_END}


def score_uniform_plan(scorer: PlanScorer, base: PrecisionPlan, precision: Precision) -> PlanSearchResult:
    """One precision for all weights, with its score and float32's."""
    float32 = scorer.score(base.model_copy(update={"default": "float32", "groups": {}}))
    groups = dict.fromkeys(scorer.group_sizes(), precision)
    plan = base.model_copy(update={"default": "float32", "groups": groups})
    return PlanSearchResult(plan, scorer.score(plan), float32, {})


def search_plan(
    scorer: PlanScorer,
    base: PrecisionPlan,
    budget: float,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> PlanSearchResult:
    """The smallest plan whose accuracy is at most `budget` below float32's; `base` gives block size and method.

    Raises:
        PlanError: even the largest plan loses more.
    """
    float32, sizes = scorer.score(base.model_copy(update={"default": "float32", "groups": {}})), scorer.group_sizes()
    table: dict[str, dict[Precision, GroupSensitivity]] = {
        group: {"float32": GroupSensitivity(size, (0.0,))} for group, size in sizes.items()
    }
    pairs = trials(list(sizes), PRECISIONS)
    for index, (group, precision) in enumerate(pairs):
        score = scorer.score(base.model_copy(update={"default": "float32", "groups": {group: precision}}))
        size = sizes[group] + score.size - float32.size
        table[group][precision] = GroupSensitivity(size, (max(0.0, float32.accuracy - score.accuracy),))
        on_progress(index + 1, len(pairs))
    scores: dict[tuple[tuple[str, Precision], ...], PlanScore] = {}

    def lost(groups: dict[str, Precision]) -> float:
        plan = base.model_copy(update={"default": "float32", "groups": groups})
        scores[tuple(groups.items())] = scorer.score(plan)
        return max(0.0, float32.accuracy - scores[tuple(groups.items())].accuracy)

    best = choose(table, budget, lost)
    plan = base.model_copy(update={"default": "float32", "groups": best.groups})
    return PlanSearchResult(plan, scores[tuple(best.groups.items())], float32, table)
