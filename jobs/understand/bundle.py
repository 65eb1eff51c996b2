"""The bundle of an understand job: its plan is chosen by accuracy on validation questions, its score is the test's."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import numpy as np

from jobs.understand.data import UnderstandData
from jobs.understand.stages import ANSWERS, trained_model
from jobs.worker.context import WorkerContext
from tinymusician.house_band.skill_questions import attribute_questions
from tinymusician.models.spectral_front_end import RATE
from tinymusician.quantize.audio_lm_bundle import BundleFacts, audio_difference, write_graphs, write_manifest
from tinymusician.quantize.precision import PrecisionPlan
from tinymusician.runtime.answers import Floats
from tinymusician.runtime.measure_answering import measure_answering
from tinymusician.understand.answering import FinerAnswerer
from tinymusician.understand.benchmark import SystemScore, score_probabilities, score_rotations
from tinymusician.understand.bundle_answerer import BundleAnswerer
from tinymusician.understand.plan_search import PlanScorer, PlanSearchResult, score_uniform_plan, search_plan
from tinymusician.understand.questions import clip_rows

_PARITY_CLIPS = 128


def write_bundle(
    context: WorkerContext, data: UnderstandData, folder: Path, source: str
) -> tuple[PlanSearchResult, SystemScore]:
    """Write the bundle of the trained model, whose artifact is `source`; returns the plan's search and its score.

    Raises:
        PlanError: every plan that is searched loses more accuracy than the recipe allows.
    """
    config, run = data.config.compress, context.run
    model, tokenizer = trained_model(context, data, ANSWERS), data.tokenizer.to_str()
    clips = data.split("validation").audio(slice(None))
    questions = data.questions("validation")
    if len(questions) > config.questions:
        questions = random.Random(data.seed).sample(questions, config.questions)
    scorer = PlanScorer(model, tokenizer, clips, questions, attribute_questions(), context.threads)
    base = PrecisionPlan(name="accuracy", block_size=config.block_size, note=f"chosen for {source}")
    if config.precision is not None:
        search = score_uniform_plan(scorer, base, config.precision)
    else:
        progress = partial(run.report_progress, "sensitivity")
        search = search_plan(scorer, base, config.accuracy_budget, progress)
    write_graphs(model, search.plan, tokenizer, folder)
    facts = BundleFacts(
        name=context.recipe.name,
        window_seconds=clips.shape[1] / RATE,
        questions=attribute_questions(),
        parity={
            **audio_difference(model, clips[:_PARITY_CLIPS])._asdict(),
            "validation_accuracy": {"float32": search.float32.accuracy, "bundle": search.chosen.accuracy},
        },
        cost={"graph_bytes": search.chosen.size},
        licence=data.licence,
        lineage={"run": run.id, "model": source},
        levels=_levels(clips),
    )
    write_manifest(model, search.plan, folder, facts)
    measured = measure_answering(folder)
    cost, memory = {**facts.cost, **measured.model_dump()}, measured.peak_memory_bytes
    write_manifest(model, search.plan, folder, facts._replace(cost=cost, minimum_memory=memory))
    return search, _score(context, data, folder)


def _levels(clips_BN: Floats) -> tuple[float, float]:
    """The root mean square of clips, but for one in a hundred on each side."""
    low, high = np.percentile(np.sqrt(np.square(clips_BN, dtype=np.float64).mean(1)), (1, 99)).round(4)
    return float(low), float(high)


def _score(context: WorkerContext, data: UnderstandData, folder: Path) -> SystemScore:
    """The bundle's score on the hard questions, from audio to answer."""
    questions, clips = data.questions("test"), data.split("test")
    bundle = BundleAnswerer(folder, context.threads)
    answerer = FinerAnswerer(bundle, bundle.attributes)
    clip_ids, rows = clip_rows(questions)
    features = bundle.embed(clips.audio(np.array(clip_ids)))[rows]
    first = answerer.probabilities(features, questions)
    circular = score_rotations(questions, answerer, features, first)
    return score_probabilities("bundle", questions, first).model_copy(update={"circular": circular})
