"""Runs a function on the Ray Train workers of a run, beside sidecar actors, and restarts workers that die."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from jobs.worker.actor_pool import run_once, spare_cpus
from jobs.worker.context import Finish, Work, WorkerContext
from jobs.worker.node_errors import errors_name_the_node
from jobs.worker.resources import WorkerResources, allocate_resources
from tinymusician.artifacts.run_state import Allocation, RunResult
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import ClusterError, RunError, StoreError, TinyMusicianError, first_line
from tinymusician.json_types import JsonObject
from tinymusician.recipe import parse_recipe

if TYPE_CHECKING:
    from ray.train.v2.api.exceptions import WorkerGroupError

_COLLECTIVE_TIMEOUT_SECONDS = 1800
"""Longer than workers wait for one of them whose store does not respond (`STORE_TIMEOUT_SECONDS`, 600 s)."""
_PLACEMENT_TIMEOUT_SECONDS = 30 * 24 * 3600
"""A fixed number of workers waits this long for free resources: the run is WAITING, and its user may stop it."""


class SidecarActors(NamedTuple):
    """`number` actors beside the workers, each with the resources of a worker.

    `start` takes the run and the resources of each; its context manager owns the actors.
    """

    number: int
    start: Callable[[RunStore, WorkerResources], contextlib.AbstractContextManager[object]]


NO_SIDECARS = SidecarActors(0, lambda run, resources: contextlib.nullcontext())


def run_training_driver(run: RunStore, work: Work, finish: Finish, sidecars: SidecarActors = NO_SIDECARS) -> RunResult:
    """The driver of a training job: `work` on all workers, then `finish` on one actor, whose result is the job's."""
    run_ray_train(work, run, sidecars)
    return run_once(finish, run)


def run_ray_train(work: Work, run: RunStore, sidecars: SidecarActors = NO_SIDECARS) -> None:
    """Run `work` on the run's workers, each with a GPU as `training.device` says, and start them again if some die.

    If the recipe allows fewer workers (`training.min_workers`), Ray Train continues with those that remain, and adds
    workers when nodes return.

    Raises:
        ClusterError: workers died `training.max_restarts` + 1 times without a new checkpoint in between.
    """
    from ray.train.v2.api.exceptions import WorkerGroupError

    record = run.record()
    training, workers = parse_recipe(record.recipe, run.id).training, record.workers
    min_workers = min(training.min_workers or workers, workers)
    actors = sidecars.number
    resources = allocate_resources(training, workers + actors, min_workers + actors, spare_cpus(record))
    if min_workers == workers:  # Ray Train decides again how many workers there are only after a timeout
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(_PLACEMENT_TIMEOUT_SECONDS)
    run.write_allocation(Allocation(workers=workers + actors, cpus=resources.cpus, gpus=resources.gpus))
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "2")
    budget = RestartBudget(training.max_restarts, run.checkpoint_keys())
    with sidecars.start(run, resources):
        while True:
            try:
                _fit(work, run, (min_workers, workers), resources)
                return
            except WorkerGroupError as error:
                _decide_restart(run, budget, error)


def _fit(work: Work, run: RunStore, workers: tuple[int, int], resources: WorkerResources) -> None:
    """Run `work` once on between `workers` workers; a preempted node is no failure for Ray Train."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            _worker_entry_point,
            train_loop_config={"work": work, "context": WorkerContext.of_run(run, 0, 1, resources.device)},
            torch_config=TorchConfig(
                backend="nccl" if resources.gpus else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_SECONDS
            ),
            scaling_config=ScalingConfig(
                num_workers=workers[1] if workers[0] == workers[1] else workers,
                use_gpu=bool(resources.gpus),
                resources_per_worker={"CPU": resources.cpus},
            ),
            run_config=RunConfig(name=run.id, storage_path=folder, failure_config=FailureConfig(max_failures=0)),
        )
        trainer.fit()


def _decide_restart(run: RunStore, budget: RestartBudget, error: WorkerGroupError) -> None:
    """Return if the workers may start again after an error; the loss of a machine after a notice is no failure.

    Raises:
        ClusterError: they failed too often.
        WorkerGroupError: it would occur again.
    """
    if run.fatal_error() is not None:
        raise error
    if any(is_planned_restart(failure) for failure in error.worker_failures.values()):
        return
    causes = [f"worker {rank}: {first_line(failure)}" for rank, failure in sorted(error.worker_failures.items())]
    print(f"workers were lost: {'; '.join(causes)}", flush=True)
    if run.take_notice():
        return
    if not budget.allows(run.checkpoint_keys()):
        where = f"; nodes that are gone: {', '.join(gone)}" if (gone := gone_nodes()) else ""
        raise ClusterError(
            f"workers were lost {budget.failures} times without a new checkpoint, and training.max_restarts = "
            f"{budget.max_restarts}: {'; '.join(causes)}{where}; continue with --resume {run.id}"
        ) from error


class RestartBudget:
    """Counts failures without progress: a new checkpoint sets the count back."""

    def __init__(self, max_restarts: int, checkpoints: frozenset[str]) -> None:
        self.max_restarts, self.failures, self._checkpoints = max_restarts, 0, checkpoints

    def allows(self, checkpoints: frozenset[str]) -> bool:
        """Count a failure; whether work may start again, given the checkpoints that exist now."""
        self.failures = self.failures + 1 if checkpoints <= self._checkpoints else 1
        self._checkpoints |= checkpoints
        return self.failures <= self.max_restarts


class RestartWorkers(Exception):
    """Raised by workers to start again from the last checkpoint, as planned."""


def is_planned_restart(failure: BaseException | None) -> bool:
    """Whether a worker's failure is a planned restart."""
    while failure is not None and not isinstance(failure, RestartWorkers):
        failure = getattr(failure, "_base_exc", None) or getattr(failure, "cause", None) or failure.__cause__
    return failure is not None


def gone_nodes() -> list[str]:
    """The names of the cluster's nodes that are gone."""
    import ray

    return sorted({node["NodeManagerHostname"] for node in ray.nodes() if not node["Alive"]})


def _worker_entry_point(config: JsonObject) -> None:
    """Ray Train calls this in every worker process."""
    import ray.train

    context: WorkerContext = config["context"]
    if context.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    train = ray.train.get_context()
    _run_work(config["work"], replace(context, rank=train.get_world_rank(), world=train.get_world_size()))


def _run_work(work: Work, context: WorkerContext) -> None:
    """Run the work. An error for users would occur again, so after a restart by Ray Train it is raised at once.

    A store that did not respond may respond later, so its errors are worth a restart.
    """
    if (fatal_error := context.run.fatal_error()) is not None:
        raise RunError(fatal_error)
    try:
        with errors_name_the_node():
            work(context)
    except TinyMusicianError as error:
        if not isinstance(error, StoreError):
            context.run.write_fatal_error(str(error))
        raise
