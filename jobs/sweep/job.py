"""The sweep job: trainings that differ in one setting, spread over actors, and one evaluation of their students.

The teacher's samples and logits are computed once. Each training runs on one actor. Then every student generates from
the same captions and is compared with the teacher. The store caches the result of every step.
"""

from __future__ import annotations

from jobs.distill import precompute
from jobs.evaluate.job import EvalWorker
from jobs.evaluate.steps import EvalTask, StagePools, chunk_ranges, generate_tasks, recording_tasks
from jobs.sweep.aggregate import aggregate, forced_groups, sweep_clips
from jobs.sweep.evaluator import SweepEvaluator
from jobs.sweep.render import render
from jobs.sweep.trials import trials_of
from jobs.worker.context import WorkerContext
from tinymusician.artifacts.run_state import RunResult
from tinymusician.artifacts.runs import RunStore
from tinymusician.evaluate.results import REAL


class SweepWorker(EvalWorker):
    """Runs the tasks of one actor: those of an evaluation, and trainings."""

    evaluator: SweepEvaluator

    def open_evaluator(self, context: WorkerContext) -> SweepEvaluator:
        """The evaluator of this actor."""
        return SweepEvaluator(context)

    def run(self, task: EvalTask) -> RunResult | None:
        """Run a task; what the store has is not computed again."""
        if task.kind != "train":
            return super().run(task)
        models = self.evaluator.models
        models.trainer.train(models.trials[task.model_id])
        return None

    def aggregate(self) -> RunResult:
        """Write report.json; returns its metrics."""
        return aggregate(self.evaluator)

    def render(self) -> None:
        """Write the report's pages."""
        render(self._run)


def run(run: RunStore) -> RunResult | None:
    """The driver."""
    precompute.compute(run)
    pools = StagePools(run, SweepWorker)
    recipe, run_stage = pools.recipe, pools.run_stage
    model_ids = list(dict.fromkeys(trial.model_id for trial in trials_of(recipe)))
    clips, batch, forced = sweep_clips(recipe), recipe.evaluate.batch_size, forced_groups(recipe)
    reference = recording_tasks(recipe.evaluate, {REAL: recipe.evaluate.clips})
    # One actor reads the reference first: the tunes of the house band are parsed once per machine.
    run_stage("reference", reference[:1])
    run_stage("train", [EvalTask("train", model_id) for model_id in model_ids])
    run_stage("generate", generate_tasks(model_ids, clips, forced[-1].stop, batch))
    groups = chunk_ranges(clips, batch)
    run_stage("embed", reference + [EvalTask("embed", model_id, group) for model_id in model_ids for group in groups])
    run_stage("agreement", [EvalTask("agreement", model_id, group) for model_id in model_ids for group in forced])
    result = run_stage("aggregate", [EvalTask("aggregate")], max_concurrency=1)
    run_stage("render", [EvalTask("render")], max_concurrency=1)
    return result
