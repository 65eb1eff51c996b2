"""Runs a function on the Ray Train workers of a run, beside sidecar actors, and restarts workers that die."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from typing import NamedTuple

from jobs.worker.actor_pool import run_once, spare_cpus
from jobs.worker.context import Work, WorkerContext
from jobs.worker.resources import WorkerResources, allocate_resources
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import RunError, StoreError, TinyMusicianError
from tinymusician.json_types import JsonObject
from tinymusician.recipe import parse_recipe

_COLLECTIVE_TIMEOUT_SECONDS = 24 * 3600
_PLACEMENT_TIMEOUT_SECONDS = 30 * 24 * 3600
"""A fixed number of workers waits this long for free resources: the run is WAITING, and its user may stop it."""


class SidecarActors(NamedTuple):
    """`number` actors beside the workers, each with the resources of a worker.

    `start` takes the run and the resources of each; its context manager owns the actors.
    """

    number: int
    start: Callable[[RunStore, WorkerResources], contextlib.AbstractContextManager[object]]


NO_SIDECARS = SidecarActors(0, lambda run, resources: contextlib.nullcontext())


def run_training_driver(run: RunStore, work: Work, finish: Work, sidecars: SidecarActors = NO_SIDECARS) -> None:
    """The driver of a training job: `work` on all workers, then `finish` on one actor."""
    run_ray_train(work, run, sidecars)
    run_once(finish, run)


def run_ray_train(work: Work, run: RunStore, sidecars: SidecarActors = NO_SIDECARS) -> None:
    """Run `work` on the run's workers, each with a GPU as `training.device` says.

    If the recipe allows fewer workers (`training.min_workers`), Ray Train continues with those that remain, and adds
    workers when nodes return.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    record = run.record()
    training, workers = parse_recipe(record.recipe, run.id).training, record.workers
    min_workers = min(training.min_workers or workers, workers)
    actors = sidecars.number
    resources = allocate_resources(training, workers + actors, min_workers + actors, spare_cpus(record))
    if min_workers == workers:  # Ray Train decides again how many workers there are only after a timeout
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(_PLACEMENT_TIMEOUT_SECONDS)
    with tempfile.TemporaryDirectory() as folder, sidecars.start(run, resources):
        trainer = TorchTrainer(
            _worker_entry_point,
            train_loop_config={"work": work, "store_url": run.store.url, "run_id": run.id, "device": resources.device},
            torch_config=TorchConfig(
                backend="nccl" if resources.gpus else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_SECONDS
            ),
            scaling_config=ScalingConfig(
                num_workers=workers if min_workers == workers else (min_workers, workers),
                use_gpu=bool(resources.gpus),
                resources_per_worker={"CPU": resources.cpus},
            ),
            run_config=RunConfig(
                name=run.id,
                storage_path=folder,
                failure_config=FailureConfig(max_failures=training.max_restarts + training.max_skipped_steps),
            ),
        )
        trainer.fit()


def _worker_entry_point(config: JsonObject) -> None:
    """Ray Train calls this in every worker process."""
    import ray.train

    device = config["device"]
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    train = ray.train.get_context()
    context = WorkerContext(
        config["store_url"], config["run_id"], train.get_world_rank(), train.get_world_size(), device
    )
    _run_work(config["work"], context)


def _run_work(work: Work, context: WorkerContext) -> None:
    """Run the work. An error for users would occur again, so after a restart by Ray Train it is raised at once.

    A store that did not respond may respond later, so its errors are worth a restart.
    """
    if (fatal_error := context.run.fatal_error()) is not None:
        raise RunError(fatal_error)
    try:
        work(context)
    except TinyMusicianError as error:
        if not isinstance(error, StoreError):
            context.run.write_fatal_error(str(error))
        raise
