"""The driver of a job that trains: work on the asked number of workers, then what one of them does for all."""

from __future__ import annotations

from jobs.worker.actor_pool import run_once
from jobs.worker.worker import NO_SIDECARS, SidecarActors, Work, run_ray_train
from tinymusician.artifacts.runs import RunStore


def run_training_driver(run: RunStore, work: Work, finish: Work, sidecars: SidecarActors = NO_SIDECARS) -> None:
    """Do both on the cluster that this process was started by."""
    run_ray_train(work, run, sidecars)
    run_once(finish, run.store.url, run.id, run.record().recipe["training"]["max_restarts"])
