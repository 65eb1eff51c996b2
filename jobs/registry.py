"""The jobs that run on a cluster: for each kind, the module whose `run` function is its driver.

A module is imported when its job runs: each kind needs other libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Literal

from tinymusician.artifacts.run_state import RunResult
from tinymusician.artifacts.runs import RunStore

JobKind = Literal["pretrain", "precompute", "distill", "quantize", "evaluate", "sweep", "pipeline", "understand"]

JOBS: Mapping[JobKind, str] = {
    "precompute": "jobs.distill.precompute",
    "distill": "jobs.distill.job",
    "quantize": "jobs.quantize.job",
    "evaluate": "jobs.evaluate.job",
    "sweep": "jobs.sweep.job",
    "pretrain": "jobs.pretrain",
    "pipeline": "jobs.pipeline",
    "understand": "jobs.understand.job",
}


def run_job(kind: JobKind, run: RunStore) -> RunResult | None:
    """Run a job's driver to its end; returns what it produced, or None if an earlier result still holds."""
    result: RunResult | None = import_module(JOBS[kind]).run(run)
    return result
