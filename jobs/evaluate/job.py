"""The evaluate job: generate → embed → aggregate → render, spread over actors.

`generate` makes the clips of every model; `embed` computes the features of all clips, those of files too, the agreement
with the teacher, and the cost of each model alone; `aggregate` computes the metrics; `render` writes the report. The
store caches what each step computes, and `evaluate.first` (`--from STEP`) starts at a later one.
"""

from __future__ import annotations

from typing import get_args

from jobs.evaluate.aggregate import aggregate
from jobs.evaluate.evaluator import Evaluator
from jobs.evaluate.open import count_recordings
from jobs.evaluate.render import render
from jobs.evaluate.steps import (
    EvalTask,
    StagePools,
    agreement_groups,
    clip_groups,
    evaluated_models,
    generate_tasks,
    recording_tasks,
)
from jobs.worker.context import WorkerContext
from jobs.worker.model_refs import is_bundle, parse_label
from tinymusician.artifacts.run_state import RunResult
from tinymusician.artifacts.runs import RunStore
from tinymusician.evaluate.results import REAL, RECONSTRUCTED
from tinymusician.recipe import EvaluateStep


class EvalWorker:
    """Runs the tasks of one actor."""

    def __init__(self, context: WorkerContext) -> None:
        self._run = context.run
        self.evaluator = self.open_evaluator(context)

    def open_evaluator(self, context: WorkerContext) -> Evaluator:
        """The evaluator of this actor."""
        return Evaluator(context)

    def run(self, task: EvalTask) -> RunResult | None:
        """Run a task; what the store has is not computed again. The aggregation returns the job's result."""
        if task.kind == "check":
            _ = self.evaluator.given_statistics
        elif task.kind == "generate":
            self.evaluator.generate(task.model_id, task.clips)
        elif task.kind == "embed" and task.model_id in (REAL, RECONSTRUCTED, *self.evaluator.config.audio):
            self.evaluator.recordings.embed(task.model_id, task.clips)
        elif task.kind == "embed":
            self.evaluator.embed(task.model_id, task.clips)
        elif task.kind == "agreement":
            self.evaluator.measure_agreement(task.model_id, task.clips)
        elif task.kind == "cost":
            self.evaluator.measure_cost(task.model_id)
        elif task.kind == "aggregate":
            return self.aggregate()
        elif task.kind == "render":
            self.render()
        else:
            raise ValueError(f"an evaluation has no tasks of kind {task.kind}")
        return None

    def aggregate(self) -> RunResult:
        """Write report.json; returns its metrics."""
        return aggregate(self.evaluator)

    def render(self) -> None:
        """Write the report's pages."""
        render(self._run)


def run(run: RunStore) -> RunResult | None:
    """The driver; returns no result if only pages are rendered again."""
    pools, result = StagePools(run, EvalWorker), None
    recipe, run_stage = pools.recipe, pools.run_stage
    config, model_ids = recipe.evaluate, evaluated_models(recipe)
    bundles = [model_id for model_id in model_ids if is_bundle(pools.run.store, parse_label(model_id)[1])]
    models = [model_id for model_id in model_ids if model_id not in bundles]
    steps: tuple[EvaluateStep, ...] = get_args(EvaluateStep)
    requested = steps[steps.index(config.first) :]
    groups, compared = clip_groups(config), agreement_groups(config)
    recorded = count_recordings(config) if "embed" in requested else {}
    real = recording_tasks(config, {REAL: recorded[REAL]} if REAL in recorded else {})
    if "embed" in requested:
        # One actor reads the reference first: tunes are parsed once per machine, and a wrong file is named at once.
        run_stage("reference", real[:1] or [EvalTask("check")], on_cpu=bool(bundles))
    if "generate" in requested:
        if bundles:
            tasks = generate_tasks(bundles, config.clips, 0, config.batch_size)
            run_stage("generate by bundles", tasks, on_cpu=True)
        if model_ids:
            teacher_clips = compared[-1].stop if compared else 0
            run_stage("generate", generate_tasks(models, config.clips, teacher_clips, config.batch_size))
    if "embed" in requested:
        tasks = recording_tasks(config, recorded)
        tasks += [EvalTask("embed", model_id, group) for model_id in model_ids for group in groups]
        run_stage("embed", tasks)
        run_stage("agreement", [EvalTask("agreement", model_id, group) for model_id in model_ids for group in compared])
        if config.cost_runs:
            run_stage("cost", [EvalTask("cost", model_id) for model_id in models], max_concurrency=1)
            run_stage("cost of bundles", [EvalTask("cost", model_id) for model_id in bundles], 1, on_cpu=True)
    if "aggregate" in requested:
        result = run_stage("aggregate", [EvalTask("aggregate")], max_concurrency=1)
    run_stage("render", [EvalTask("render")], max_concurrency=1)
    return result
