"""Runs in the store: what was asked, how it stands, its log and metrics. Readable when the cluster is long gone.

runs/ID/record.json     what was asked: resolved recipe, versions, git state, seeds, workers
runs/ID/status.json     how it stands: state, artifact, metrics; written by the supervisor, or by `tmctl` where none is
runs/ID/alive.txt       the supervisor's last sign of life, every few seconds
runs/ID/progress.json   stage and step; written by the first worker alone
runs/ID/steps.json      of a pipeline: how its steps stand, and the run of each
runs/ID/log.txt         everything the job printed
runs/ID/metrics.jsonl   one JSON object a line
runs/ID/checkpoints/    see tinymusician.training.checkpoint
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tinymusician.artifacts.store import Store
from tinymusician.errors import DigestMismatchError, NotFoundError, RunError

State = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
ENDED: tuple[State, ...] = ("STOPPED", "SUCCEEDED", "FAILED")
STOPPED = "stopped; continue it with --resume"
RUN_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,80}")
SILENCE = timedelta(seconds=60)
"""A run that is said to be running and has not stirred for this long is presumed dead."""


STEPS_FILE = "steps.json"


class RunRecord(BaseModel):
    """What was asked for; written once, and again by `--resume` with what differs."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: str
    recipe: dict[str, Any]
    workers: int
    created: datetime
    versions: dict[str, str]
    git: dict[str, str]
    seeds: dict[str, int]
    cluster: str
    submission: str
    part_of: str = ""


class RunStatus(BaseModel):
    """How a run stands."""

    model_config = ConfigDict(frozen=True)

    state: State = "PENDING"
    stop_requested_at: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    message: str = ""
    artifact: str | None = None
    metrics: dict[str, Any] = {}


class Progress(BaseModel):
    """How far a run is."""

    model_config = ConfigDict(frozen=True)

    stage: str
    step: int
    steps: int


Kind = TypeVar("Kind", RunRecord, RunStatus, Progress)


class RunStore:
    """One run's place in a store."""

    def __init__(self, store: Store, run: str) -> None:
        self.store, self.id = store, run

    def key(self, name: str) -> str:
        """The key of a file of this run."""
        return f"runs/{self.id}/{name}"

    def exists(self) -> bool:
        """Whether such a run was ever recorded."""
        return self.store.exists(self.key("record.json"))

    def record(self) -> RunRecord:
        """What was asked for.

        Raises:
            RunError: there is no such run.
        """
        try:
            return self._read("record.json", RunRecord)
        except NotFoundError as error:
            raise RunError(f"run {self.id!r}: not in {self.store.url}; `tmctl runs` lists those that are") from error

    def _read(self, name: str, kind: type[Kind]) -> Kind:
        try:
            return kind.model_validate_json(self.store.get(self.key(name)))
        except ValidationError as error:
            raise DigestMismatchError(f"run {self.id!r}: {self.key(name)} in {self.store.url} is damaged") from error

    def write_record(self, record: RunRecord) -> None:
        """Set the record."""
        self.store.put(self.key("record.json"), record.model_dump_json(indent=2).encode())

    def status(self) -> RunStatus:
        """How the run stands, as it last said itself."""
        try:
            return self._read("status.json", RunStatus)
        except NotFoundError:
            return RunStatus()

    def update(self, **changes: Any) -> RunStatus:
        """Change some fields of the status."""
        status = self.status().model_copy(update=changes)
        self.store.put(self.key("status.json"), status.model_dump_json(indent=2).encode())
        return status

    def progress(self) -> Progress | None:
        """How far the run is, None before its first sign of life."""
        try:
            return self._read("progress.json", Progress)
        except NotFoundError:
            return None

    def steps(self) -> list[dict[str, Any]]:
        """How the steps of a pipeline stand; none before it has begun."""
        try:
            steps: list[dict[str, Any]] = json.loads(self.store.get(self.key(STEPS_FILE)))
        except NotFoundError:
            return []
        return steps

    def tell(self, stage: str, step: int, steps: int) -> None:
        """Say how far the run is."""
        progress = Progress(stage=stage, step=step, steps=steps)
        self.store.put(self.key("progress.json"), progress.model_dump_json().encode())

    def heartbeat(self) -> None:
        """Give a sign of life."""
        self.store.put(self.key("alive.txt"), now().isoformat().encode())

    def stirred(self) -> datetime | None:
        """When the run last gave a sign of life."""
        try:
            return datetime.fromisoformat(self.store.get(self.key("alive.txt")).decode())
        except NotFoundError:
            return None

    def log(self) -> str:
        """What the run printed so far."""
        try:
            return self.store.get(self.key("log.txt")).decode("utf-8", "replace")
        except NotFoundError:
            return ""


def list_runs(store: Store, damaged: Callable[[str], None]) -> list[dict[str, Any]]:
    """The summary of every run of a store, oldest first; of those that cannot be read, `damaged` hears why."""
    statuses = []
    for entry in store.list("runs/"):
        if entry.key.count("/") == 2 and entry.key.endswith("/record.json"):
            folder = RunStore(store, entry.key.split("/")[1])
            try:
                record = folder.record()
                if not record.part_of:
                    statuses.append((record.created, summary(folder)))
            except DigestMismatchError as error:
                damaged(str(error))
    return [facts for _, facts in sorted(statuses, key=lambda pair: pair[0])]


def summary(folder: RunStore) -> dict[str, Any]:
    """A run as scripts see it."""
    record, progress = folder.record(), folder.progress()
    status = effective_status(folder)
    return {
        "id": record.id,
        "kind": record.kind,
        "recipe": record.recipe.get("name"),
        "state": status.state,
        "artifact": status.artifact,
        "started": status.started.isoformat() if status.started else None,
        "ended": status.ended.isoformat() if status.ended else None,
        "metrics": status.metrics,
        "stage": progress.stage if progress else None,
        "step": progress.step if progress else 0,
        "steps": progress.steps if progress else None,
        "message": status.message,
        "workers": record.workers,
        **({"pipeline": folder.steps()} if record.kind == "pipeline" else {}),
    }


def effective_status(folder: RunStore) -> RunStatus:
    """How a run stands; a running one without a sign of life for a minute counts as failed: its cluster died.

    The sign is the cluster's clock and the minute is this machine's, so the two must agree to some seconds.
    """
    status, stirred = folder.status(), folder.stirred()
    if status.state != "RUNNING" or stirred is None or now() - stirred < SILENCE:
        return status
    silence = int((now() - stirred).total_seconds())
    message = f"no sign of life for {silence} s: its cluster died; continue it with --resume"
    return status.model_copy(update={"state": "FAILED", "message": message})


def check_run_name(name: str) -> str:
    """Return `name` if it can name a run.

    Raises:
        RunError: it cannot.
    """
    if not RUN_NAME.fullmatch(name):
        raise RunError(
            f"run name {name!r}: allowed are lower-case letters, digits, '.' and '-', at most 81, no '-' first"
        )
    return name


def now() -> datetime:
    """The present time in UTC."""
    return datetime.now(UTC)
