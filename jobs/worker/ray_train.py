"""Runs a function on the Ray Train workers of a run, beside sidecar actors, and restarts workers that die."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from typing import NamedTuple

from jobs.worker.actor_pool import run_once
from jobs.worker.context import Work, WorkerContext
from jobs.worker.resources import allocate_resources
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import RunError, StoreError, TinyMusicianError
from tinymusician.json_types import JsonObject
from tinymusician.recipe import parse_recipe

_COLLECTIVE_TIMEOUT_SECONDS = 24 * 3600


class SidecarActors(NamedTuple):
    """`number` actors beside the workers, each with the resources of a worker.

    `start` takes the run, whether the actors have GPUs, and their CPUs; its context manager owns the actors.
    """

    number: int
    start: Callable[[RunStore, bool, int], contextlib.AbstractContextManager[object]]


NO_SIDECARS = SidecarActors(0, lambda run, gpu, cpus: contextlib.nullcontext())


def run_training_driver(run: RunStore, work: Work, finish: Work, sidecars: SidecarActors = NO_SIDECARS) -> None:
    """The driver of a training job: `work` on all workers, then `finish` on one actor."""
    run_ray_train(work, run, sidecars)
    run_once(finish, run.store.url, run.id, run.record().recipe["training"]["max_restarts"])


def run_ray_train(work: Work, run: RunStore, sidecars: SidecarActors = NO_SIDECARS) -> None:
    """Run `work` on the run's workers, each with a GPU if the cluster has any.

    If the recipe allows fewer workers (`training.min_workers`), Ray Train continues with those that remain, and adds
    workers when nodes return.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    record = run.record()
    training, workers = parse_recipe(record.recipe, run.id).training, record.workers
    min_workers = min(training.min_workers or workers, workers)
    gpu, cpus = allocate_resources(workers + sidecars.number, min_workers + sidecars.number)
    with tempfile.TemporaryDirectory() as folder, sidecars.start(run, gpu, cpus):
        trainer = TorchTrainer(
            _worker_entry_point,
            train_loop_config={"work": work, "store_url": run.store.url, "run_id": run.id, "gpu": gpu},
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_SECONDS),
            scaling_config=ScalingConfig(
                num_workers=workers if min_workers == workers else (min_workers, workers),
                use_gpu=gpu,
                resources_per_worker={"CPU": cpus},
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

    if not config["gpu"]:
        os.environ["DS_ACCELERATOR"] = "cpu"
    train = ray.train.get_context()
    device = "cuda" if config["gpu"] else "cpu"
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
