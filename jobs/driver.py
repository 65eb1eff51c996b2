"""The driver of a job that trains: work on the asked number of workers, then what one of them does for all."""

from __future__ import annotations

from jobs.pool import alone
from jobs.worker import NOBODY, Company, Work, fit
from tinymusician.artifacts.runs import RunFolder


def drive(run: RunFolder, work: Work, finish: Work, company: Company = NOBODY) -> None:
    """Do both on the cluster that this process was started by."""
    fit(work, run, company)
    alone(finish, run.store.url, run.id, run.record().recipe["training"]["restarts"])
