"""What the store holds about a run, as typed documents, and the transitions between a run's states."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from tinymusician.config_model import Document
from tinymusician.errors import RunError
from tinymusician.json_types import JsonObject

State = Literal["PENDING", "RUNNING", "WAITING", "STOPPED", "SUCCEEDED", "FAILED"]
ACTIVE: tuple[State, ...] = ("RUNNING", "WAITING")
ENDED: tuple[State, ...] = ("STOPPED", "SUCCEEDED", "FAILED")
TRANSITIONS: Mapping[State, tuple[State, ...]] = {
    "PENDING": ("PENDING", "RUNNING", "STOPPED", "FAILED"),
    "RUNNING": ("PENDING", "RUNNING", "WAITING", "STOPPED", "SUCCEEDED", "FAILED"),
    "WAITING": ("PENDING", "RUNNING", "WAITING", "STOPPED", "SUCCEEDED", "FAILED"),
    "STOPPED": ("PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"),
    "FAILED": ("PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"),
    "SUCCEEDED": ("PENDING", "RUNNING"),
}
"""The states that may follow each state.

A run becomes PENDING when it is submitted or resumed; it is WAITING while its workers wait for resources. One whose
cluster died is RUNNING in the store until then. A run that a client declared STOPPED or FAILED, because the cluster
said so, may still be corrected by its supervisor. A step of a pipeline that has succeeded runs again if its artifact
was removed, and an evaluation if a user repeats a step.
"""
_RUN_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,80}")


class RunRecord(Document):
    """What was submitted; written at submission, and again by `--resume` with what differs.

    `cluster` is the address of the Ray that runs it. With `local_ray` no cluster was named, and the local Ray may have
    another address by now; `head_id` tells clusters behind one address apart. `user` and `host` submitted it.
    """

    id: str
    kind: str
    recipe: JsonObject
    workers: int
    created: datetime
    versions: dict[str, str]
    git: dict[str, str]
    seeds: dict[str, int]
    cluster: str
    submission: str
    local_ray: bool = False
    head_id: str = ""
    part_of: str = ""
    user: str = ""
    host: str = ""

    @property
    def sha256(self) -> str:
        """The SHA-256 of its canonical content."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()


class RunOrigin(Document):
    """What a run began with: its recipe, and a number that no other run has."""

    recipe: JsonObject
    nonce: str


class Allocation(Document):
    """What a run's processes hold at most: `workers`, each with `cpus` and `gpus`."""

    workers: int
    cpus: int
    gpus: int

    def __str__(self) -> str:
        each = f"{self.gpus} GPU, {self.cpus} CPU" if self.gpus else f"{self.cpus} CPU"
        return f"{self.workers} x ({each})"


class StallReport(Document):
    """A worker that has been in one phase of a step for too long."""

    phase: str
    step: int
    seconds: float


class RunResult(Document):
    """What a run produced: the references of its artifact, if any, and of what belongs to it, and its metrics.

    `evaluated` has the figures of every model of an evaluation, by its name in the recipe.
    """

    artifact: str | None = None
    metrics: JsonObject = Field(default_factory=dict)
    others: tuple[str, ...] = ()
    evaluated: dict[str, JsonObject] = Field(default_factory=dict)


class RunStatus(Document):
    """A run's state, with the times of its changes, a message for people, and its result."""

    state: State = "PENDING"
    submitted: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    message: str = ""
    artifact: str | None = None
    metrics: JsonObject = Field(default_factory=dict)


class Progress(Document):
    """The current stage, its steps that are done, and their number."""

    stage: str
    step: int
    steps: int


StepState = Literal["PENDING", "RUNNING", "SUCCEEDED", "SKIPPED", "FAILED", "NOT REQUESTED"]


class PipelineStep(Document):
    """The state of a step of a pipeline, and its run and artifact once it has any."""

    step: str
    state: StepState = "PENDING"
    at: datetime | None = None
    run: str | None = None
    artifact: str | None = None


def check_run_name(name: str) -> str:
    """Return `name` if it is a valid name of a run.

    Raises:
        RunError: it is not.
    """
    if not _RUN_NAME.fullmatch(name):
        raise RunError(
            f"run name {name!r}: allowed are lower-case letters, digits, '.' and '-', at most 81, no '-' first"
        )
    return name


def now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)
