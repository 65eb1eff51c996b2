"""The evaluation job: models play the captions of a reference, and what they played is measured and shown.

Clips are played and heard by actors on all workers; then models are held against the teacher, then each is timed alone,
then one actor writes the report. What the store has is not made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jobs.evaluate.evaluator import (
    AGREEMENT_GROUP,
    REAL,
    RECONSTRUCTED,
    Evaluator,
    agreement_clips,
    chunk_ranges,
    evaluated_models,
)
from jobs.evaluate.report import write_report
from jobs.worker.actor_pool import ActorPool, stage_runner
from jobs.worker.context import WorkerContext
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.runs import RunStore
from tinymusician.recipe import parse_recipe


@dataclass(frozen=True)
class EvalTask:
    """A piece of the work: what to do with some clips of a voice."""

    kind: Literal["train", "embed", "agreement", "cost", "report"]
    model_id: str = ""
    clips: range = range(0)


class EvalWorker:
    """What an actor works with."""

    def __init__(self, context: WorkerContext) -> None:
        self.evaluation = self.opened(context)

    def opened(self, context: WorkerContext) -> Evaluator:
        """What is evaluated."""
        return Evaluator(context)

    def run(self, task: EvalTask) -> None:
        """Do one unit, or what of it is not done yet."""
        evaluation = self.evaluation
        if task.kind == "report":
            self.report()
        elif task.kind == "cost":
            evaluation.cost(task.model_id)
        elif task.kind == "agreement":
            evaluation.agreement(task.model_id, task.clips)
        elif task.model_id in (REAL, RECONSTRUCTED):
            evaluation.real_features(task.clips, task.model_id == RECONSTRUCTED)
        else:
            evaluation.features(task.model_id, task.clips)

    def report(self) -> None:
        """Write what came out."""
        write_report(self.evaluation)


def run(run_id: str) -> None:
    """The driver."""
    store = open_store()
    folder = RunStore(store, run_id)
    record = folder.record()
    recipe = parse_recipe(record.recipe, run_id)
    config, model_ids = recipe.evaluate, evaluated_models(recipe)
    run_stage = stage_runner(
        ActorPool(EvalWorker, store.url, run_id, record.workers, recipe.training.max_restarts), folder
    )
    compared, all_clips = (
        chunk_ranges(agreement_clips(config), AGREEMENT_GROUP),
        chunk_ranges(config.clips, config.batch_size),
    )
    run_stage("reference", [EvalTask("embed", REAL, all_clips[0])])  # by one, so that the band's tunes are parsed once
    run_stage(
        "teacher's clips",
        [EvalTask("embed", "teacher", clips) for clips in chunk_ranges(agreement_clips(config), config.batch_size)],
    )
    run_stage(
        "clips",
        [EvalTask("embed", model_id, clips) for model_id in (REAL, RECONSTRUCTED, *model_ids) for clips in all_clips],
    )
    run_stage("agreement", [EvalTask("agreement", model_id, clips) for model_id in model_ids for clips in compared])
    run_stage("cost", [EvalTask("cost", model_id) for model_id in model_ids if config.cost_runs], max_concurrency=1)
    run_stage("report", [EvalTask("report")], max_concurrency=1)
