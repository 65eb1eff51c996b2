"""The sweep job: trainings that differ in one thing each, spread over actors, and one yardstick for their students.

The teacher's samples and logits are made once; then each training runs on one actor; then every student plays the same
captions and is held against the teacher. What the store has is not made again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jobs.distill import precompute
from jobs.evaluate.evaluator import AGREEMENT_GROUP, REAL, chunk_ranges
from jobs.evaluate.job import EvalTask, EvalWorker
from jobs.evaluate.report import clip_features
from jobs.sweep.trials import GRIDS, SweepEvaluator, SweepTrial, trials_of
from jobs.worker.actor_pool import ActorPool, stage_runner
from jobs.worker.context import WorkerContext
from jobs.worker.ray_train import run_ray_train
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.run_state import RunResult
from tinymusician.artifacts.runs import RunStore
from tinymusician.evaluate.bootstrap import as_json
from tinymusician.evaluate.clap_score import clap_score
from tinymusician.evaluate.kad import kad
from tinymusician.evaluate.sweep_report import claims, fluctuation, html_study, markdown_study
from tinymusician.recipe import parse_recipe

CLAIMED_OBJECTIVE = "stage_mixed"
NUM_FORCED_CLIPS = 16
"""Clips of each student that the teacher judges."""


class SweepWorker(EvalWorker):
    """What an actor works with: an evaluation of students that it trains itself."""

    evaluation: SweepEvaluator

    def opened(self, context: WorkerContext) -> SweepEvaluator:
        """What is evaluated."""
        return SweepEvaluator(context)

    def run(self, task: EvalTask) -> None:
        """Do one unit, or what of it is not done yet."""
        if task.kind == "train":
            self.evaluation.trained(self.evaluation.trials[task.model_id])
        else:
            super().run(task)

    def report(self) -> None:
        """Write what came out."""
        write_report(self.evaluation)


def run(run_id: str) -> None:
    """The driver."""
    store = open_store()
    folder = RunStore(store, run_id)
    record = folder.record()
    recipe = parse_recipe(record.recipe, run_id)
    run_ray_train(precompute.work, folder)
    run_stage = stage_runner(
        ActorPool(SweepWorker, store.url, run_id, record.workers, recipe.training.max_restarts), folder
    )
    model_ids = list(dict.fromkeys(trial.model_id for trial in trials_of(recipe)))
    batch, clips = recipe.evaluate.batch_size, min(recipe.sweep.clips, recipe.evaluate.clips)
    real = [EvalTask("embed", REAL, group) for group in chunk_ranges(recipe.evaluate.clips, batch)]
    run_stage("reference", real[:1])  # by one, so that the band's tunes are parsed once
    run_stage("trainings", [EvalTask("train", model_id) for model_id in model_ids])
    run_stage(
        "teacher's clips",
        [EvalTask("embed", "teacher", group) for group in chunk_ranges(min(NUM_FORCED_CLIPS, clips), batch)],
    )
    run_stage(
        "clips",
        real + [EvalTask("embed", model_id, group) for model_id in model_ids for group in chunk_ranges(clips, batch)],
    )
    forced = chunk_ranges(min(NUM_FORCED_CLIPS, clips), AGREEMENT_GROUP)
    run_stage("agreement", [EvalTask("agreement", model_id, group) for model_id in model_ids for group in forced])
    run_stage("report", [EvalTask("report")])


def write_report(trials: SweepEvaluator) -> None:
    """Figures, report.html, report.md and report.json in the run's folder, and the run's result."""
    recipe, run = trials.recipe, trials.context.run
    clips = min(recipe.sweep.clips, recipe.evaluate.clips)
    real, prompts = clip_features(trials, REAL), trials.clap.text(trials.prompts(range(clips)))

    def final(trial: SweepTrial, rows: list[dict[str, Any]]) -> dict[str, float]:
        features = clip_features(trials, trial.model_id, clips)
        judged = [
            trials.agreement(trial.model_id, group)
            for group in chunk_ranges(min(NUM_FORCED_CLIPS, clips), AGREEMENT_GROUP)
        ]
        last = [row for row in rows if "held_out/kl" in row][-1]
        return {
            "kl": last["held_out/test/kl"],
            "reverse_kl": last["held_out/test/reverse_kl"],
            "agreement": last["held_out/test/agreement"],
            "test_loss": last["held_out/test/loss"],
            "fluctuation": fluctuation([row["held_out/validation/loss"] for row in rows if "held_out/kl" in row]),
            "kad": kad(features.vectors, real.vectors, resamples=0).value,
            "clap": clap_score(features.clap, prompts[features.indices], shuffles=1).score.value,
            "surprise": float(np.concatenate([part["surprise"] for part in judged]).mean()),
            "variety": float(np.concatenate([part["variety"] for part in judged]).mean()),
        }

    grids = collect_results(trials, final)
    content = as_json(
        {
            "grids": grids,
            "claims": claims(grids["objectives"], CLAIMED_OBJECTIVE) if "objectives" in grids else [],
            "how": provenance_of(trials, clips),
        }
    )
    run.write_report(content, html_study(recipe.name, content), markdown_study(recipe.name, content))
    means = {
        grid: {
            value: {name: float(np.mean([seed["final"][name] for seed in seeds])) for name in seeds[0]["final"]}
            for value, seeds in values.items()
        }
        for grid, values in grids.items()
    }
    run.write_result(RunResult(metrics=means))


def collect_results(
    trials: SweepEvaluator, final: Callable[[SweepTrial, list[dict[str, Any]]], dict[str, float]]
) -> dict[str, Any]:
    """By grid and value, every seed's curves and figures; a training that stands in two grids is looked at once."""
    evaluated: dict[str, dict[str, Any]] = {}
    grids: dict[str, Any] = {
        grid: {value: [] for value in values} for grid, values in GRIDS.items() if grid in trials.recipe.sweep.over
    }
    for trial in trials_of(trials.recipe):
        if trial.model_id not in evaluated:
            rows = trials.trained(trial)[1]
            evaluated[trial.model_id] = {"curves": rows, "final": final(trial, rows)}
        grids[trial.grid][trial.value].append({"seed": trial.seed, **evaluated[trial.model_id]})
    return grids


def provenance_of(trials: SweepEvaluator, clips: int) -> dict[str, str]:
    """What a figure must not be quoted without."""
    recipe, record = trials.recipe, trials.context.record
    training = recipe.training
    return {
        "teacher": recipe.teacher.model,
        "student": str(recipe.student.model_dump()),
        "trainings": f"{training.steps} steps of {training.batch_size} sequences of {recipe.sequences.seconds:g} s",
        "seeds": str(recipe.sweep.seeds),
        "what they play": f"{clips} captions of {trials.reference.provenance['reference']}",
        "KAD and CLAP by": f"{recipe.evaluate.embedding.model_dump()}, {recipe.evaluate.clap}",
        "run": record.id,
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }
