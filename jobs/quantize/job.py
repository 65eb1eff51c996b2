"""The quantize job: exports a model's graphs, measures the sensitivity of each group, and publishes a bundle.

The actors share the plans to measure, and cache the metrics in the store. One actor then chooses the plan, compares
the graphs with PyTorch, and publishes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from jobs.worker.actor_pool import ActorPool, stage_runner
from jobs.worker.context import WorkerContext
from tinymusician.artifacts.run_state import RunResult
from tinymusician.artifacts.runs import RunStore

if TYPE_CHECKING:
    from tinymusician.quantize.adaptive import PlanEvaluator

_CHUNKS_PER_WORKER = 4
"""Tasks per worker; more than one balances the load."""


@dataclass(frozen=True)
class QuantTask:
    """A unit of work: measure every `every`-th trial from `first` on, or publish the bundle."""

    kind: Literal["measure", "publish"]
    first: int = 0
    every: int = 1


class QuantWorker:
    """Runs the tasks of one actor."""

    def __init__(self, context: WorkerContext) -> None:
        from jobs.quantize.workspace import QuantizationWorkspace

        self._workspace = QuantizationWorkspace(context)

    @cached_property
    def _evaluator(self) -> PlanEvaluator:
        """The float32 graphs on the sequences of the validation prompts, which are sampled if the store has none."""
        from tinymusician.quantize.adaptive import PlanEvaluator

        workspace, config = self._workspace, self._workspace.config
        sequences = workspace.sequences("validation", config.sequences, config.seconds)
        return PlanEvaluator(workspace.exported, workspace.manifest, sequences, workspace.context.threads)

    def run(self, task: QuantTask) -> RunResult | None:
        """Run a task; what the store has is not measured again. The bundle is the job's result."""
        workspace, evaluator = self._workspace, self._evaluator
        if task.kind == "publish":
            return self._publish(evaluator)
        workspace.measure(evaluator, workspace.trials(evaluator)[task.first :: task.every])
        return None

    def _publish(self, evaluator: PlanEvaluator) -> RunResult:
        from jobs.quantize.bundle_writer import publish_bundle

        manifest, result = publish_bundle(self._workspace, evaluator)
        return RunResult(artifact=manifest.reference, metrics=result.metrics.flat())


def run(run: RunStore) -> RunResult:
    """The driver: all workers measure, one publishes."""
    pool = ActorPool(QuantWorker, run, device="cpu")  # it measures ONNX graphs
    run_stage, shares = stage_runner(pool, run), _CHUNKS_PER_WORKER * run.record().workers
    run_stage("first trials", [QuantTask("measure", 0, shares)])  # one actor samples the sequences for all
    run_stage("sensitivity", [QuantTask("measure", first, shares) for first in range(1, shares)])
    pool.scale_to(1)
    result = run_stage("bundle", [QuantTask("publish")])
    assert isinstance(result, RunResult), "the bundle's task returns it"
    return result
