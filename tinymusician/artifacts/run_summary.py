"""Runs as the command line and scripts see them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from tinymusician.artifacts.run_state import ACTIVE, PipelineStep, RunRecord, RunStatus, State, now
from tinymusician.artifacts.runs import RunStore, all_runs
from tinymusician.artifacts.store import Store
from tinymusician.config_model import Document
from tinymusician.errors import DigestMismatchError
from tinymusician.json_types import JsonObject

HEARTBEAT_TIMEOUT = timedelta(seconds=60)
"""A running run without a heartbeat for this long counts as failed."""


IsAlive = Callable[[RunRecord], bool]
"""Asks a run's cluster whether its job runs."""


def effective_status(run: RunStore, is_alive: IsAlive | None = None) -> RunStatus:
    """The status; a running run without a heartbeat for a minute counts as failed, unless `is_alive`.

    The heartbeat has the cluster's clock and the minute this machine's, and clocks differ: the cluster knows better.
    """
    status, heartbeat = run.status(), run.last_heartbeat()
    if status.state not in ACTIVE or heartbeat is None or now() - heartbeat < HEARTBEAT_TIMEOUT:
        return status
    if is_alive is not None and is_alive(run.record()):
        return status
    silence = int((now() - heartbeat).total_seconds())
    message = f"no heartbeat for {silence} s: its cluster died; continue it with --resume"
    return status.model_copy(update={"state": "FAILED", "message": message})


class RunSummary(Document):
    """A run as `tmctl runs` shows it. `pipeline` are the steps of a pipeline.

    `holds` is what its workers have on the cluster, or what it waits for.
    """

    id: str
    kind: str
    recipe: str | None
    state: State
    artifact: str | None
    started: str | None
    ended: str | None
    metrics: JsonObject
    stage: str | None
    step: int
    steps: int | None
    message: str
    workers: int
    user: str
    host: str
    holds: str
    pipeline: tuple[PipelineStep, ...] | None = None

    @property
    def steps_done(self) -> str:
        """The steps that are done of all steps, such as `5/10`."""
        return f"{self.step}/{self.steps or '?'}"

    def facts(self) -> JsonObject:
        """As JSON; `pipeline` is there for pipelines only."""
        return self.model_dump(mode="json", exclude={"pipeline"} if self.pipeline is None else None)


def summarize(run: RunStore, is_alive: IsAlive | None = None) -> RunSummary:
    """The summary of a run."""
    record, progress, status = run.record(), run.progress(), effective_status(run, is_alive)
    return RunSummary(
        id=record.id,
        kind=record.kind,
        recipe=record.recipe.get("name"),
        state=status.state,
        artifact=status.artifact,
        started=status.started.isoformat() if status.started else None,
        ended=status.ended.isoformat() if status.ended else None,
        metrics=status.metrics,
        stage=progress.stage if progress else None,
        step=progress.step if progress else 0,
        steps=progress.steps if progress else None,
        message=status.message,
        workers=record.workers,
        user=record.user,
        host=record.host,
        holds=_holds(run, record.kind, status),
        pipeline=tuple(run.pipeline()) if record.kind == "pipeline" else None,
    )


def _holds(run: RunStore, kind: str, status: RunStatus) -> str:
    """What a run has on its cluster, or why it has nothing; empty if it has ended."""
    if status.state not in ACTIVE:
        return ""
    if status.state == "WAITING":
        return status.message
    running = (
        [step.run for step in run.pipeline() if step.state == "RUNNING" and step.run] if kind == "pipeline" else []
    )
    allocation = RunStore(run.store, running[0]).allocation() if running else run.allocation()
    return str(allocation) if allocation is not None and status.state == "RUNNING" else ""


def list_runs(store: Store, on_damaged: Callable[[str], None], is_alive: IsAlive | None = None) -> list[RunSummary]:
    """The summaries of a store's runs, oldest first. `on_damaged` receives why a run cannot be read."""
    summaries = []
    for run in all_runs(store):
        try:
            record = run.record()
            if not record.part_of:
                summaries.append((record.created, summarize(run, is_alive)))
        except DigestMismatchError as error:
            on_damaged(str(error))
    return [one for _, one in sorted(summaries, key=lambda pair: pair[0])]
