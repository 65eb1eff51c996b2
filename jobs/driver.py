"""The driver of a job that trains: work on the asked number of workers, then what one of them does for all."""

from __future__ import annotations

from jobs.pool import alone
from jobs.worker import Work, fit
from tinymusician.artifacts.address import open_store
from tinymusician.artifacts.runs import RunFolder


def drive(run_id: str, work: Work, finish: Work) -> None:
    """Do both on the cluster that this process was started by."""
    store = open_store()
    record = RunFolder(store, run_id).record()
    restarts = record.recipe["training"]["restarts"]
    fit(work, store.url, run_id, record.workers, restarts)
    alone(finish, store.url, run_id, restarts)
