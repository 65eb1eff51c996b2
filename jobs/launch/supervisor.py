"""The supervisor that Ray's Jobs API starts: it runs the job as its child, and writes the run's log and state.

The supervisor does no work of its own, so it survives to report the job's end, even if the job was killed. A resumed
run has a new supervisor; an old one that still runs detects that, ends its job and writes nothing.

It signs what the job produced: a job key is on the head, and not where users' code runs.

Usage: python -m jobs.launch.supervisor RUN SUBMISSION RECORD_SHA256 new|resumed
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, cast

from jobs.launch.inputs import import_remote_inputs
from jobs.launch.run_origin import begin
from jobs.launch.shortage import run_holder, shortages_here
from jobs.launch.wait_state import WaitState
from jobs.registry import JobKind, run_job
from jobs.sign_result import sign_result
from jobs.worker import mlflow
from jobs.worker.node_errors import DISK_FULL
from tinymusician.artifacts.job_keys import derived_working_key
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.run_state import State
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import ClusterError, StoreError, TinyMusicianError, UntrustedError

Start = Literal["new", "resumed"]
"""Whether a submission begins a run, or continues one."""
_UPLOAD_SECONDS = 2.0
_HEARTBEAT_SECONDS = 10.0
_STAMP = "%Y-%m-%d %H:%M:%S"
_OUT_OF_MEMORY = re.compile(r"running low on memory\. .* was (\S+) used / (\S+) limit")
"""Ray's messages about workers that its memory monitor killed, or helpers beside them."""
_GPU_OUT_OF_MEMORY = re.compile(r"CUDA out of memory\. Tried to allocate (\S+ \S+)\. .* total capacity of (\S+ \S+)")


class LogUploader:
    """Copies lines to standard output, uploads the run's log to the store, and writes heartbeats."""

    def __init__(self, run: RunStore, is_owner: Callable[[], bool], on_superseded: Callable[[], None]) -> None:
        """`is_owner` tells whether this process is still the run's supervisor; if not, `on_superseded` is called."""
        self._run, self._is_owner, self._on_superseded = run, is_owner, on_superseded
        self._log, self._pending, self._is_sent = run.log_writer(), "", True
        self._lock, self._stop, self._last_heartbeat = threading.Lock(), threading.Event(), -_HEARTBEAT_SECONDS
        self._thread = threading.Thread(target=self._keep_sending, daemon=True)
        self._thread.start()

    def line(self, line: str) -> None:
        """Process one line."""
        print(line, end="", flush=True)
        with self._lock:
            self._pending += line

    def close(self) -> None:
        """Upload the rest."""
        self._stop.set()
        self._thread.join()
        self._send()

    def _keep_sending(self) -> None:
        while not self._stop.wait(_UPLOAD_SECONDS):
            try:
                self._send()
                if time.monotonic() - self._last_heartbeat > _HEARTBEAT_SECONDS:
                    self._run.heartbeat() if self._is_owner() else self._on_superseded()
                    self._last_heartbeat = time.monotonic()
            except StoreError as error:
                print(f"log: {error}", file=sys.stderr)

    def _send(self) -> None:
        if (not self._pending and self._is_sent) or not self._is_owner():
            return
        with self._lock:
            text, self._pending, self._is_sent = self._pending, "", False
        self._log.append(text.encode())
        self._is_sent = True


def supervise(run_id: str, submission: str, record_sha256: str, start: Start) -> int:
    """Run the job, and write its result to the store; returns its exit code."""
    run = RunStore(open_store(), run_id)  # a later submission has another record, which it must be able to read
    record = run.record()

    def is_owner() -> bool:
        return run.record().submission == submission

    run.heartbeat()
    _remove_stale_drafts(run)
    run.start()
    child = _start_driver(record.kind, run_id, record_sha256, start)
    log = LogUploader(run, is_owner, child.terminate)
    log.line(f"{time.strftime(_STAMP)} {record.kind} {run_id}, {record.workers} worker(s)\n")
    stopped = threading.Event()

    def stop(*_: object) -> None:
        stopped.set()
        child.terminate()

    signal.signal(signal.SIGTERM, stop)
    assert child.stdout is not None
    holder = run_holder(run_id)
    with WaitState(run, is_owner, lambda: shortages_here(holder)):
        for line in child.stdout:
            log.line(line)
        code = child.wait()
    message = _failure(run, code) if code != 0 and not stopped.is_set() else ""
    state: State = "SUCCEEDED" if code == 0 else "STOPPED" if stopped.is_set() else "FAILED"
    log.line(f"{time.strftime(_STAMP)} {state} {message}\n")
    try:
        log.close()  # before the final state, so that a run that has ended has its whole log
    finally:
        if is_owner():
            _write_final_state(run, state, message)
    _remove_stale_drafts(run)
    return code


def _start_driver(kind: str, run_id: str, record_sha256: str, start: Start) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-u", "-m", "jobs.launch.supervisor", "--child", kind, run_id, record_sha256, start],
        cwd=Path(__file__).parents[2],  # Ray's workers import from here, not from where Ray was started
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def _remove_stale_drafts(run: RunStore) -> None:
    """Remove unfinished uploads of killed writers from the store, if the store allows to list them."""
    with contextlib.suppress(StoreError):
        run.store.sweep()


def _write_final_state(run: RunStore, state: State, message: str) -> None:
    if state == "SUCCEEDED":
        run.succeed(run.result())
    elif state == "STOPPED":
        run.stop()
    else:
        run.fail(message)
    if mlflow.is_used():
        unfinished = [step.run for step in run.pipeline() if step.run and step.state in ("RUNNING", "FAILED")]
        for name in (run.id, *unfinished):
            mlflow.end_run(RunStore(run.store, name), state)


def _failure(run: RunStore, code: int) -> str:
    """The reason that the driver ended with an exit code other than 0."""
    if code < 0:
        return f"its driver was killed by signal {-code}; continue it with --resume"
    return run.error() or f"its driver ended with exit code {code}; see `tmctl logs {run.id}`"


def run_child(kind: JobKind, run_id: str, record_sha256: str, start: Start) -> int:
    """Run the job of this kind, and sign its result; an error for users becomes one line."""
    run = RunStore(open_store(), run_id, record_sha256=record_sha256)
    run.clear_errors()
    try:
        key = derived_working_key()  # fails before hours of work that could not be signed
        if run.record().kind != kind:
            raise UntrustedError(f"run {run_id!r}: is a {run.record().kind} run, and was started as {kind}")
        run = begin(import_remote_inputs(run, partial(print, flush=True)), key, start == "resumed")
        sign_result(run, run_job(kind, run))
    except Exception as error:
        cause = to_user_error(error)
        if cause is None:
            raise
        run.write_error(str(cause))
        print(f"error: {cause}", file=sys.stderr)
        return 1
    return 0


def to_user_error(error: BaseException | None) -> TinyMusicianError | None:
    """The error for users behind what Ray Train raises for its workers, if there is one."""
    while error is not None:
        if isinstance(error, ClusterError) and (behind := to_user_error(error.__cause__)) is not None:
            return behind  # what killed a worker says more than that it was lost
        if isinstance(error, TinyMusicianError):
            return error
        if isinstance(error, OSError) and (error.filename or error.errno in DISK_FULL):
            return TinyMusicianError(f"{error.filename or 'the disk for scratch files'}: {error.strerror}")
        if type(error).__name__ == "SafetensorError":
            return TinyMusicianError(f"a file of tensors cannot be read or written: {error}")
        if isinstance(error, ModuleNotFoundError):
            return TinyMusicianError(
                f"the cluster's Python has no {error.name}: install tinymusician's extras there too"
            )
        if memory := _OUT_OF_MEMORY.search(str(error)):
            return TinyMusicianError(
                f"a machine of the cluster ran out of memory ({memory[1]} of {memory[2]}): ask for fewer --workers, "
                "for smaller batches, or for machines with more; continue with --resume"
            )
        if memory := _GPU_OUT_OF_MEMORY.search(str(error)):
            return TinyMusicianError(
                f"a GPU of {memory[2]} ran out of memory, where {memory[1]} more were needed: lower "
                "training.batch_size or, while sampling, sequences.sampling_batch_size; "
                "training.activation_checkpointing, training.zero_stage and teacher.tensor_parallel_size save memory "
                "too; --resume continues the run"
            )
        for failure in getattr(error, "worker_failures", {}).values():
            if (user_error := to_user_error(failure)) is not None:
                return user_error
        error = getattr(error, "_base_exc", None) or getattr(error, "cause", None) or error.__cause__
    return None


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        sys.exit(run_child(cast(JobKind, sys.argv[2]), sys.argv[3], sys.argv[4], cast(Start, sys.argv[5])))
    sys.exit(supervise(sys.argv[1], sys.argv[2], sys.argv[3], cast(Start, sys.argv[4])))
