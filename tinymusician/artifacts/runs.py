"""A run's documents, log and metrics in the store, readable long after its cluster is gone.

Only this module, and run_signals.py for what running processes write, know their names:

    runs/ID/record.json              what was submitted: resolved recipe, versions, git state, seeds, workers
    runs/ID/origin.json              the recipe that it began with; written by the driver
    runs/ID/status.json              state, artifact, metrics; written by the supervisor, or by `tmctl` if there is none
    runs/ID/heartbeat.txt            the time of the supervisor's last heartbeat, every few seconds
    runs/ID/progress.json            stage and step; written by the first worker
    runs/ID/allocation.json          what the workers hold on the cluster; written by the driver
    runs/ID/stalls/RANK.json         a worker that hangs
    runs/ID/notice.txt               a machine will be taken away
    runs/ID/pipeline.json            of a pipeline: the state of its steps, and the run of each
    runs/ID/result.json              artifact and metrics; written by the job at its end
    runs/ID/error.txt                the error of the last attempt, for people
    runs/ID/refused.txt              an error that every further attempt would meet again
    runs/ID/measurements/KIND-….json  what a worker measured of a subject, such as the cost of a model
    runs/ID/audio/NAME.flac          the audio samples of a report
    runs/ID/reference.npz            the statistics of an evaluation's reference set
    runs/ID/training.png, components.png, tensorboard/…
    runs/ID/trials/KEY/000000, …     of a sweep: the metrics of each training
    runs/ID/skipped-steps-STAGE.json training steps that update nothing
    runs/ID/log/000000, …            everything the job printed, in parts
    runs/ID/metrics/STAGE/000000, …  one JSON object per line, in parts
    runs/ID/report.json|md|html      the report
    runs/ID/checkpoints/STAGE        see tinymusician.training.checkpoint
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import TypeAdapter

from tinymusician.artifacts.append_log import AppendLog, AppendLogReader
from tinymusician.artifacts.authenticated_store import AuthenticatedStore, WorkingKeys
from tinymusician.artifacts.run_signals import RunSignals
from tinymusician.artifacts.run_state import (
    TRANSITIONS,
    PipelineStep,
    RunOrigin,
    RunRecord,
    RunResult,
    RunStatus,
    State,
)
from tinymusician.artifacts.store import Store
from tinymusician.config_model import Document
from tinymusician.errors import NotFoundError, RunError, UntrustedError
from tinymusician.json_types import JsonObject

_Document = TypeVar("_Document", bound=Document)
_PIPELINE = TypeAdapter(tuple[PipelineStep, ...])
_ERRORS = ("error.txt", "refused.txt")

_CHECKPOINT_ENTRY = re.compile(r"/step-\d{8}\.json$")


class RunStore(RunSignals):
    """One run in a store."""

    # What was submitted

    def exists(self) -> bool:
        """Whether the run was ever submitted."""
        return self.store.exists(self.key("record.json"))

    def record(self) -> RunRecord:
        """What was submitted.

        Raises:
            RunError: there is no such run.
            UntrustedError: this process expects another record.
        """
        try:
            record = self._read("record.json", RunRecord)
        except NotFoundError as error:
            raise RunError(f"run {self.id!r}: not in {self.store.url}; `tmctl runs` lists the runs") from error
        if self.record_sha256 not in (None, record.sha256):
            raise UntrustedError(f"run {self.id!r}: its record in {self.store.url} is not the one that was submitted")
        return record

    def write_record(self, record: RunRecord) -> RunStore:
        """Set the record; returns the run, with that record only."""
        self._write("record.json", record)
        return RunStore(self.store, self.id, self._clock, record.sha256)

    def authenticated(self, keys: WorkingKeys | None) -> RunStore:
        """The run in a store whose working notes have a MAC of these keys; without keys, the run itself."""
        if keys is None:
            return self
        return RunStore(AuthenticatedStore(self.store, keys), self.id, self._clock, self.record_sha256)

    def origin(self) -> RunOrigin:
        """What the run began with.

        Raises:
            NotFoundError: it has not begun.
        """
        return self._read("origin.json", RunOrigin)

    def write_origin(self, origin: RunOrigin) -> None:
        """Set what the run begins with."""
        self._write("origin.json", origin)

    # States

    def status(self) -> RunStatus:
        """The status in the store; see `run_summary.effective_status` for one that takes heartbeats into account."""
        try:
            return self._read("status.json", RunStatus)
        except NotFoundError:
            return RunStatus()

    def submit(self) -> None:
        """Transition to PENDING: the run is submitted or resumed.

        Raises:
            RunError: its state does not allow this.
        """
        self._transition("PENDING", message="", submitted=self._clock(), ended=None)

    def start(self) -> None:
        """Transition to RUNNING: an attempt starts, without the errors of earlier ones.

        Raises:
            RunError: its state does not allow this.
        """
        self.clear_errors()
        self._transition("RUNNING", started=self.status().started or self._clock(), ended=None, message="")

    def wait(self, message: str) -> None:
        """Transition to WAITING: the workers wait for resources, as the message says.

        Raises:
            RunError: its state does not allow this.
        """
        self._transition("WAITING", message=message)

    def proceed(self) -> None:
        """Transition from WAITING to RUNNING: the workers have their resources.

        Raises:
            RunError: its state does not allow this.
        """
        self._transition("RUNNING", message="")

    def succeed(self, result: RunResult) -> None:
        """Transition to SUCCEEDED.

        Raises:
            RunError: its state does not allow this.
        """
        self._transition("SUCCEEDED", message="", ended=self._clock(), artifact=result.artifact, metrics=result.metrics)

    def fail(self, message: str) -> None:
        """Transition to FAILED.

        Raises:
            RunError: its state does not allow this.
        """
        self._transition("FAILED", ended=self._clock(), message=message)

    def stop(self) -> None:
        """Transition to STOPPED: a user stopped the run.

        Raises:
            RunError: its state does not allow this.
        """
        self._transition("STOPPED", ended=self._clock(), message="stopped; continue it with --resume")

    def _transition(self, state: State, **changes: object) -> None:
        status = self.status()
        if state not in TRANSITIONS[status.state]:
            raise RunError(f"run {self.id!r}: is {status.state} and cannot become {state}")
        self._write("status.json", status.model_copy(update={"state": state, **changes}))

    # Pipelines

    def write_pipeline(self, steps: Sequence[PipelineStep]) -> None:
        """Set the states of a pipeline's steps."""
        self.store.put(self.key("pipeline.json"), _PIPELINE.dump_json(tuple(steps), indent=2))

    def pipeline(self) -> tuple[PipelineStep, ...]:
        """The states of a pipeline's steps; empty before it has started."""
        try:
            return _PIPELINE.validate_json(self.store.get(self.key("pipeline.json")))
        except NotFoundError:
            return ()

    # Results and errors

    def write_result(self, result: RunResult) -> None:
        """Set the result of the job."""
        self._write("result.json", result)

    def result(self) -> RunResult:
        """The result of the job.

        Raises:
            NotFoundError: the job has not written one.
        """
        return self._read("result.json", RunResult)

    def write_error(self, message: str) -> None:
        """Set the error of this attempt."""
        self.store.put(self.key("error.txt"), message.encode())

    def error(self) -> str | None:
        """The error of the last attempt."""
        return self._text("error.txt")

    def write_fatal_error(self, message: str) -> None:
        """Record an error that every restart of this attempt would meet again."""
        self.store.put(self.key("refused.txt"), message.encode())

    def fatal_error(self) -> str | None:
        """The error that every restart of this attempt would meet again."""
        return self._text("refused.txt")

    def clear_errors(self) -> None:
        """Forget all errors."""
        for name in _ERRORS:
            self.store.delete(self.key(name))

    # Measurements and reports

    def write_measurement(self, kind: str, subject: str, document: Document) -> None:
        """Set what was measured of a subject."""
        self._write(_measurement_name(kind, subject), document)

    def measurement(self, kind: str, subject: str, document: type[_Document]) -> _Document | None:
        """What was measured of a subject; None if nothing was."""
        try:
            return self._read(_measurement_name(kind, subject), document)
        except NotFoundError:
            return None

    def write_report(self, content: Document) -> None:
        """Set the content of the report."""
        self._write("report.json", content)

    def report(self, document: type[_Document]) -> _Document:
        """The content of the report.

        Raises:
            NotFoundError: there is none.
        """
        return self._read("report.json", document)

    def write_rendered_report(self, html: str, markdown: str | None = None) -> None:
        """Set the report's pages."""
        self.store.put(self.key("report.html"), html.encode())
        if markdown is not None:
            self.store.put(self.key("report.md"), markdown.encode())

    def report_files(self) -> dict[str, bytes]:
        """The files of the report that exist, by their suffix: `html`, `md`, `json`."""
        files = {suffix: self._bytes(f"report.{suffix}") for suffix in ("html", "md", "json")}
        return {suffix: content for suffix, content in files.items() if content is not None}

    def report_location(self) -> str:
        """The key of the report's page, for messages."""
        return self.key("report.html")

    def write_audio(self, name: str, flac: bytes) -> None:
        """Set an audio sample of the report."""
        self.store.put(self.key(f"audio/{name}"), flac)

    def audio(self, name: str) -> bytes:
        """An audio sample of the report.

        Raises:
            NotFoundError: there is none of this name.
        """
        return self.store.get(self.key(f"audio/{name}"))

    def write_reference(self, npz: bytes) -> None:
        """Set the statistics of the reference set, as `ReferenceStatistics.to_bytes` gives them."""
        self.store.put(self.key("reference.npz"), npz)

    def reference(self) -> bytes:
        """The statistics of the reference set.

        Raises:
            RunError: the run is no evaluation, or has not computed them.
        """
        content = self._bytes("reference.npz")
        if content is None:
            raise RunError(f"run {self.id!r}: has no reference statistics; finished `tmctl submit evaluate` runs have")
        return content

    # Training

    def write_plot(self, name: Literal["training", "components"], png: Path) -> None:
        """Set a plot of the training: `training` of the language model, `components` of the other components."""
        self.store.upload(png, self.key(f"{name}.png"))

    def write_tensorboard(self, stage: str, event_file: Path) -> None:
        """Set an event file of a stage."""
        self.store.upload(event_file, self.key(f"tensorboard/{stage}/{event_file.name}"))

    def metrics(self, stage: str = "distill") -> list[JsonObject]:
        """A stage's metrics by step, as `MetricsLog` writes them; none before the first."""
        return [json.loads(line) for line in self.metrics_reader(stage).read().splitlines()]

    def metrics_reader(self, stage: str = "distill") -> AppendLogReader:
        """A reader that follows a stage's metrics."""
        return AppendLogReader(self.store, self.metrics_key(stage))

    def metrics_key(self, stage: str = "distill") -> str:
        """The prefix of a stage's metrics, an `AppendLog`."""
        return self.key(f"metrics/{stage}")

    def trial_metrics_key(self, trial: str) -> str:
        """The prefix of the metrics of a sweep's training, an `AppendLog`."""
        return self.key(f"trials/{trial}")

    def checkpoints_key(self, stage: str) -> str:
        """The prefix of a stage's checkpoints."""
        return self.key(f"checkpoints/{stage}")

    def checkpoint_keys(self) -> frozenset[str]:
        """The entries of all checkpoints of all stages: not the notes of their shards, which make nothing valid."""
        entries = self.store.list(self.key("checkpoints/"))
        return frozenset(entry.key for entry in entries if _CHECKPOINT_ENTRY.search(entry.key))

    def delete_checkpoints(self, stage: str) -> None:
        """Delete a stage's checkpoints."""
        for entry in list(self.store.list(f"{self.checkpoints_key(stage)}/")):
            self.store.delete(entry.key)

    def skipped_steps(self, stage: str) -> frozenset[int]:
        """The training steps of a stage that update nothing."""
        text = self._text(f"skipped-steps-{stage}.json")
        return frozenset(json.loads(text)["steps"] if text is not None else ())

    def write_skipped_steps(self, stage: str, steps: Collection[int]) -> None:
        """Set the training steps of a stage that update nothing."""
        self.store.put(self.key(f"skipped-steps-{stage}.json"), json.dumps({"steps": sorted(steps)}).encode())

    # Log

    def log(self) -> str:
        """What the run has printed."""
        return self.log_reader().read().decode("utf-8", "replace")

    def log_reader(self) -> AppendLogReader:
        """A reader that follows what the run prints."""
        return AppendLogReader(self.store, self.key("log"))

    def log_writer(self) -> AppendLog:
        """The writer of the log; a run has one."""
        return AppendLog(self.store, self.key("log"))


def _measurement_name(kind: str, subject: str) -> str:
    return f"measurements/{kind}-{hashlib.sha256(subject.encode()).hexdigest()[:16]}.json"


def all_runs(store: Store) -> Iterator[RunStore]:
    """Every run of a store, steps of pipelines included."""
    for entry in store.list("runs/"):
        if entry.key.count("/") == 2 and entry.key.endswith("/record.json"):
            yield RunStore(store, entry.key.split("/")[1])
