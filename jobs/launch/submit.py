"""Submits a run: its record is written to the store first, then the job goes to the cluster."""

from __future__ import annotations

import getpass
import os
import secrets
import shlex
import socket
import sys
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from jobs.launch import cluster
from jobs.launch.inputs import upload_inputs
from jobs.launch.ray_environment import configured_address
from jobs.launch.trusted_clusters import check_trusted, remember_cluster
from jobs.registry import JobKind
from jobs.worker import mlflow
from serve.config import is_loopback
from tinymusician.artifacts.open import STORE_TIMEOUT_VARIABLE
from tinymusician.artifacts.provenance import git_state, package_versions
from tinymusician.artifacts.run_state import ENDED, RunRecord, check_run_name, now
from tinymusician.artifacts.run_summary import HEARTBEAT_TIMEOUT, IsAlive, effective_status
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import Store
from tinymusician.errors import ClusterError, RunError, UntrustedClusterError
from tinymusician.recipe import Recipe

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient as JobClient

STORE_TIMEOUT_SECONDS = "600"
"""Seconds for which a job retries requests to a store that does not respond."""
_TRAINING: tuple[JobKind, ...] = ("distill", "pipeline")
_ALIVE = {"PENDING", "RUNNING"}
"""States of a living job in Ray."""


def submit(
    store: Store,
    kind: JobKind,
    recipe: Recipe,
    workers: int | None,
    address: str | None,
    name: str | None,
    resume: str | None,
) -> RunStore:
    """Record a run and start its job; `resume` continues an earlier run, on its own cluster unless another is named.

    Inputs on this machine are imported into the store, unless the job runs on the local Ray.

    Raises:
        RunError: the name is taken, or the run to resume does not exist, is still running, or is of another kind.
        ClusterError: the cluster cannot be reached or refuses the job.
    """
    run = RunStore(store, check_run_name(resume or name or _new_run_name(recipe.name, kind)))
    if resume:
        workers, address = resume_target(run, kind, workers, address, recipe.evaluate.first != "generate")
    elif run.exists():
        raise RunError(f"run {run.id!r}: exists already; choose another --name, or continue it with --resume {run.id}")
    is_local = configured_address(address) is None
    mlflow.shared_variables(is_local)  # refuses a password before anything is written
    client, where = cluster.connect(address)
    if not is_local:
        remember_cluster(where)
        cluster.check_ray_version(where)
        cluster.check_store(store, where)
    check_workers(kind, recipe, workers or 1)
    if not is_local:
        recipe = upload_inputs(store, recipe, kind, partial(print, file=sys.stderr))
    submission = f"{run.id}-{secrets.token_hex(3)}"
    record = _new_record(run, kind, recipe, workers or 1, where, submission)
    run = run.write_record(record.model_copy(update={"local_ray": is_local, "head_id": cluster.head_id(where)}))
    run.submit()
    _start_job(client, run, kind, where, submission, "resumed" if resume else "new")
    return run


def _start_job(client: JobClient, run: RunStore, kind: JobKind, where: str, submission: str, start: str) -> None:
    """Start a run's supervisor as a job of Ray, with the digest of its record: others may write to the store.

    Raises:
        ClusterError: the cluster refuses it; the run has failed.
    """
    environment = cluster.runtime_environment(run.store, where)
    environment["env_vars"][STORE_TIMEOUT_VARIABLE] = os.environ.get(STORE_TIMEOUT_VARIABLE, STORE_TIMEOUT_SECONDS)
    try:
        client.submit_job(
            entrypoint=(
                f"{_python_command(where)} -P -m jobs.launch.supervisor "
                f"{run.id} {submission} {run.record_sha256} {start}"
            ),
            submission_id=submission,
            runtime_env=environment,
            metadata={"run": run.id, "kind": kind},
        )
    except Exception as error:
        run.fail(f"the cluster refused the job: {error}")
        raise ClusterError(f"cluster {where}: refused the job ({error})") from error


def _new_record(run: RunStore, kind: JobKind, recipe: Recipe, workers: int, where: str, submission: str) -> RunRecord:
    """The record of a submission; a resumed run keeps its date."""
    before = run.record() if run.exists() else None
    content = recipe.model_dump(mode="json")
    return RunRecord(
        id=run.id,
        kind=kind,
        recipe=content,
        workers=workers,
        created=before.created if before else now(),
        versions=package_versions(),
        git=git_state(),
        seeds={"training": content["training"]["seed"]},
        cluster=where,
        submission=submission,
        user=_user(),
        host=socket.gethostname(),
    )


def _user() -> str:
    """The name of this process's user; its number, if the system has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def check_workers(kind: JobKind, recipe: Recipe, workers: int) -> None:
    """Check that every worker has something to do: a microbatch of each step, and its slice of the teacher.

    Raises:
        RunError: there are too many workers, or their number is no multiple of the teacher's tensor-parallel size.
    """
    training, split = recipe.training, recipe.teacher.tensor_parallel_size
    if kind == "pretrain" and workers > 1:
        raise RunError(f"--workers {workers}: pretraining computes a step at once; 1 worker is allowed")
    most = training.microbatches if kind in _TRAINING else workers
    if kind == "understand" and recipe.understand is not None:
        batches = (recipe.understand.pretrain.batch_size, recipe.understand.train.batch_size)
        most = max(1, min(batches) // training.batch_size)
    if workers > most:
        key = "understand.*.batch_size" if kind == "understand" else "training.global_batch"
        raise RunError(
            f"--workers {workers}: a step has {most} microbatches ({key} ÷ training.batch_size), so at "
            f"most {most} workers are allowed; a lower training.batch_size allows more"
        )
    if kind in ("precompute", "distill", "pipeline") and workers % split:
        raise RunError(f"--workers {workers}: teacher.tensor_parallel_size = {split} needs a multiple of it")


RESUMABLE_KEYS = (
    "training.device",
    "training.cpus_per_worker",
    "training.zero_stage",
    "training.activation_checkpointing",
    "training.min_workers",
    "training.max_restarts",
    "training.max_skipped_steps",
    "signals.source",
    "evaluate.first",
)
"""The keys of a recipe that may change when a run is resumed: they do not change its result."""


def resume_target(
    run: RunStore, kind: str, workers: int | None, address: str | None, rerun: bool = False
) -> tuple[int, str | None]:
    """The number of workers and the cluster's address of a resumed run: its own, unless others are given.

    With `rerun`, an evaluation that has succeeded may run its later steps again.

    Raises:
        RunError: it is of another kind, finished or still running.
        ClusterError: only its record names its cluster.
    """
    record = run.record()
    if record.kind != kind:
        raise RunError(f"run {run.id!r}: is a {record.kind} run; resume it with `tmctl submit {record.kind}`")
    if run.status().state == "SUCCEEDED" and not (kind == "evaluate" and rerun):
        hint = "; repeat a step with `--from embed`, `aggregate` or `render`" if kind == "evaluate" else ""
        raise RunError(f"run {run.id!r}: has succeeded; there is nothing to resume{hint}")
    # Once it has ended, the cluster may take a while to see it.
    if run.status().state not in ENDED and _may_run(run, address):
        raise RunError(f"run {run.id!r}: is still running; stop it first with `tmctl stop {run.id}`")
    configured = configured_address(address)
    if configured is None and not record.local_ray:
        check_trusted(record.cluster)
        _check_tunnel(record)
        configured = record.cluster
    return workers or record.workers, configured


def _may_run(run: RunStore, address: str | None) -> bool:
    """Whether a run's job may be running, by its cluster; by its heartbeat, where that must not be asked."""
    record = run.record()
    try:
        check_trusted(record.cluster, address)
    except UntrustedClusterError:
        return effective_status(run).state not in ENDED and not _is_lost(run)
    return alive_checker(address)(record)


def _is_lost(run: RunStore) -> bool:
    """Whether a run was submitted a while ago and has never begun."""
    status = run.status()
    late = status.submitted is not None and now() - status.submitted > HEARTBEAT_TIMEOUT
    return status.state == "PENDING" and late


def _check_tunnel(record: RunRecord) -> None:
    """Check that a loopback address, which may be the end of a tunnel, still leads to the run's cluster.

    Raises:
        RunError: it leads to another one, or to none.
    """
    if not record.head_id or not is_loopback(urlparse(record.cluster).hostname or ""):
        return
    if (head := cluster.head_id(record.cluster)) != record.head_id:
        what = "another cluster answers" if head else "no cluster answers"
        raise RunError(
            f"run {record.id!r}: ran on the cluster behind {record.cluster}, and {what} there now; open the tunnel to "
            f"it again, or name the cluster to continue on: --cluster http://HEAD:8265"
        )


def stop(run: RunStore) -> None:
    """Ask the cluster to end a run's job.

    Raises:
        RunError: the run has ended already.
        ClusterError: its cluster does not respond, or only its record names it.
    """
    record = run.record()
    if run.status().state not in ENDED:
        check_trusted(record.cluster)
    state = effective_status(run, is_alive).state
    if state in ENDED:
        raise RunError(f"run {run.id!r}: has ended ({state})")
    client = cluster.connect_recorded(record.cluster)
    try:
        client.stop_job(record.submission)
    except RuntimeError as error:
        message = f"cluster {record.cluster} no longer knows its job; continue it with --resume {run.id}"
        raise RunError(f"run {run.id!r}: {message}") from error
    except OSError as error:
        raise ClusterError(f"cluster {record.cluster}: ended the connection ({error}); try again") from error


def reconcile(run: RunStore) -> None:
    """If Ray reports that a run's job has ended, but the run's state does not, update the state."""
    if run.status().state in ENDED:
        return
    record = run.record()
    try:
        client = cluster.connect_recorded(record.cluster)
        job = client.get_job_info(record.submission)
    except UntrustedClusterError:  # others know what became of it
        return
    except (ClusterError, RuntimeError, OSError):  # OSError: requests' errors, when a dashboard ends meanwhile
        if _is_lost(run):
            run.fail(f"cluster {record.cluster} was lost before the job started; continue it with --resume")
        return
    if str(job.status) not in ENDED or run.status().state in ENDED:
        return
    if str(job.status) == "STOPPED":  # Ray did not wait for its supervisor to write this
        run.stop()
    else:
        run.fail(failure_reason(str(job.status), job.message or ""))


def failure_reason(status: str, message: str) -> str:
    """Why a job ended that could not write it itself, by what Ray says about it."""
    if "Unknown option: -P" in message:
        return "the Python of the cluster's head is older than 3.11; tinymusician needs 3.11 or later on all nodes"
    if "No module named 'pydantic'" in message or "No module named jobs" in message:
        return "the Python of the cluster's head has no tinymusician; install it on all nodes, with its extra cluster"
    return f"Ray reports the job as {status}: {' '.join(message.split())[-300:]}"


def is_alive(record: RunRecord) -> bool:
    """Whether the cluster reports this run's job as running; a cluster that is gone runs nothing."""
    return alive_checker()(record)


def alive_checker(named: str | None = None) -> IsAlive:
    """`is_alive` for many runs: a cluster that does not answer is asked once. `named` is the command's cluster."""
    silent: set[str] = set()

    def ask(record: RunRecord) -> bool:
        if record.cluster in silent:
            return False
        try:
            client = cluster.connect_recorded(record.cluster, named)
        except ClusterError:
            silent.add(record.cluster)
            return False
        try:
            return str(client.get_job_status(record.submission)) in _ALIVE
        except (RuntimeError, OSError):
            return False

    return ask


def _new_run_name(recipe: str, kind: str) -> str:
    """A run's name: recipe, kind, local time, and four random digits."""
    return f"{recipe}-{kind}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _python_command(where: str) -> str:
    """This interpreter on this machine, the cluster's own elsewhere."""
    return shlex.quote(sys.executable) if cluster.is_here(where) else "python"
