"""The compression job: a model's graphs, what each of its groups minds, a plan, the parity gate, and a bundle.

Actors on all workers measure a share each of the plans to be tried; what was measured lies in the store, shard by
shard, and is not measured again. One of them then chooses, checks and publishes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from jobs.worker.actor_pool import ActorPool, stage_runner
from jobs.worker.context import WorkerContext
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.run_state import RunResult
from tinymusician.artifacts.runs import RunStore

if TYPE_CHECKING:
    from tinymusician.quantize.adaptive import PlanEvaluator

_CHUNKS_PER_WORKER = 4
"""Shares of the trials a worker, so that none waits long for the slowest."""


@dataclass(frozen=True)
class QuantTask:
    """A piece of the work: the trials from the `first` on, `every` so many, or what is made of them all."""

    kind: Literal["measure", "publish"]
    first: int = 0
    every: int = 1


class QuantWorker:
    """What an actor works with."""

    def __init__(self, context: WorkerContext) -> None:
        from jobs.quantize.workspace import QuantizationWorkspace

        self._compression = QuantizationWorkspace(context)

    @cached_property
    def _measurer(self) -> PlanEvaluator:
        """The float32 graphs on the sequences of the validation prompts, which are played if the store has none."""
        from tinymusician.quantize.adaptive import PlanEvaluator

        compression, config = self._compression, self._compression.config
        sequences = compression.sequences("validation", config.sequences, config.seconds)
        return PlanEvaluator(compression.exported, compression.manifest, sequences, compression.context.threads)

    def run(self, task: QuantTask) -> None:
        """Do one unit, or what of it is not done yet."""
        compression, measurer = self._compression, self._measurer
        if task.kind == "publish":
            self._publish(measurer)
        else:
            compression.measure(measurer, compression.trials(measurer)[task.first :: task.every])

    def _publish(self, measurer: PlanEvaluator) -> None:
        from jobs.quantize.bundle_writer import publish_bundle

        manifest, figures = publish_bundle(self._compression, measurer)
        self._compression.context.run.write_result(RunResult(artifact=manifest.reference, metrics=figures))


def run(run_id: str) -> None:
    """The driver: the measuring on the asked number of workers, the rest on one."""
    store = open_store()
    folder = RunStore(store, run_id)
    record = folder.record()
    pool = ActorPool(QuantWorker, store.url, run_id, record.workers, record.recipe["training"]["max_restarts"])
    run_stage, shares = stage_runner(pool, folder), _CHUNKS_PER_WORKER * record.workers
    run_stage("first trials", [QuantTask("measure", 0, shares)])  # by one, which plays the sequences for all
    run_stage("sensitivity", [QuantTask("measure", first, shares) for first in range(1, shares)])
    pool.scale_to(1)
    run_stage("bundle", [QuantTask("publish")])
