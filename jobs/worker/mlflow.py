"""Copies a run's settings and metrics to an MLflow server, if MLFLOW_TRACKING_URI names one.

The store stays the record: a server that does not answer costs its copy, and the run at most some seconds at the end of
a stage. Needs the extra `mlflow`.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlparse

from tinymusician.artifacts.background import BackgroundWriter
from tinymusician.artifacts.run_state import State
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import ClusterError
from tinymusician.json_types import JsonObject

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    from tinymusician.training.metrics import Row

TRACKING_VARIABLE, EXPERIMENT_VARIABLE = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
RUN_TAG, STORE_TAG, ID_TAG = "tinymusician.run", "tinymusician.store", "tinymusician.id"
"""Tags of MLflow's run: our run's name, its store, and a hash of both, by which a resumed run finds it again."""
Item = TypeVar("Item")
_STATES: dict[State, str] = {"SUCCEEDED": "FINISHED", "FAILED": "FAILED", "STOPPED": "KILLED"}
_HTTP_LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
}
_MAX_METRICS, _MAX_PARAMS, _MAX_LENGTH = 1000, 100, 6000
"""MLflow's limits of a request, and of a parameter's length."""
_MAX_ROWS = 100_000
"""Rows that wait for a server that does not answer; more are not copied."""
_END_SECONDS = 5.0
"""The longest wait for the server at the end of a stage, and of a run."""


def is_used() -> bool:
    """Whether this process's environment names an MLflow server."""
    return bool(os.environ.get(TRACKING_VARIABLE))


def shared_variables(is_here: bool) -> dict[str, str]:
    """The variables that a cluster's nodes need for the same server; other machines do not see a folder of this one.

    Raises:
        ClusterError: the address contains a password.
    """
    address = os.environ.get(TRACKING_VARIABLE, "")
    if "@" in urlparse(address).netloc:
        raise ClusterError(
            f"{TRACKING_VARIABLE}: no passwords are sent to a cluster; set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD on its nodes, and leave them out of the address"
        )
    if not address or not (is_here or address.startswith(("http://", "https://"))):
        return {}
    return {name: os.environ[name] for name in (TRACKING_VARIABLE, EXPERIMENT_VARIABLE) if name in os.environ}


class MlflowLogger:
    """A metric sink. It sends rows in a thread of its own, as metrics `STAGE/NAME`."""

    def __init__(self, run: RunStore, stage: str) -> None:
        self._run, self._stage = run, stage
        self._rows: list[tuple[int, Row]] = []
        self._lock, self._writer = threading.Lock(), BackgroundWriter()
        self._id, self._is_lost = "", False

    def add(self, row: Row) -> None:
        with self._lock:
            if len(self._rows) < _MAX_ROWS:
                self._rows.append((time.time_ns() // 1_000_000, row))

    def flush(self) -> None:
        """Send soon; the server may be slow."""
        self._writer.submit("mlflow", self._send)

    def close(self) -> None:
        self.flush()
        self._writer.drain(_END_SECONDS)

    def _send(self) -> None:
        try:
            client = _client()
            self._id = self._id or _find_or_create(client, self._run)
            while rows := self._next_rows():
                client.log_batch(self._id, metrics=[metric for row in rows for metric in self._metrics(*row)])
                with self._lock:
                    del self._rows[: len(rows)]
            self._is_lost = False
        except Exception as error:  # of MLflow, of its HTTP client, or a missing package
            if not self._is_lost:
                print(f"MLflow: {_line(error)}; the run goes on, and its metrics are in the store", flush=True)
            self._is_lost = True

    def _next_rows(self) -> list[tuple[int, Row]]:
        """As many of the oldest rows as one request takes."""
        with self._lock:
            widest = max((len(row) for _, row in self._rows[:_MAX_METRICS]), default=1)
            return self._rows[: max(1, _MAX_METRICS // widest)]

    def _metrics(self, at: int, row: Row) -> Iterator[Metric]:
        from mlflow.entities import Metric

        for name, value in row.items():
            if name != "step" and value is not None:
                yield Metric(_metric_name(f"{self._stage}/{name}"), value, at, row["step"])


def end_run(run: RunStore, state: State) -> None:
    """Tell MLflow that a run has ended, with its artifact and final metrics, if it answers within seconds."""
    if is_used():
        thread = threading.Thread(target=_end_run, args=(run, state), daemon=True)
        thread.start()
        thread.join(_END_SECONDS)


def _end_run(run: RunStore, state: State) -> None:
    try:
        from mlflow.entities import Metric, RunTag

        client, status = _client(), run.status()
        mlflow_run, at = _find_or_create(client, run), time.time_ns() // 1_000_000
        client.set_terminated(mlflow_run, _STATES[state])
        client.log_batch(mlflow_run, tags=[RunTag("tinymusician.artifact", status.artifact or "")])
        leaves = ((_metric_name(name), value) for name, value in _leaves(status.metrics) if not isinstance(value, bool))
        metrics = (Metric(name, value, at, 0) for name, value in leaves if isinstance(value, int | float))
        for some in _batches(metrics, _MAX_METRICS):
            client.log_batch(mlflow_run, metrics=some)
    except Exception as error:  # as above
        print(f"MLflow: {_line(error)}", flush=True)


def _client() -> MlflowClient:
    for name, value in _HTTP_LIMITS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(os.environ[TRACKING_VARIABLE])


def _find_or_create(client: MlflowClient, run: RunStore) -> str:
    """The id of MLflow's run of one of ours, with its recipe as parameters."""
    from mlflow.entities import Param

    name = os.environ.get(EXPERIMENT_VARIABLE) or "tinymusician"
    experiment = client.get_experiment_by_name(name)
    experiment_id = client.create_experiment(name) if experiment is None else experiment.experiment_id
    our_id = hashlib.sha256(f"{run.store.url} {run.id}".encode()).hexdigest()[:16]
    before = client.search_runs([experiment_id], f"tags.`{ID_TAG}` = '{our_id}'", max_results=1)
    if before:
        client.update_run(before[0].info.run_id, status="RUNNING")
        return str(before[0].info.run_id)
    record = run.record()
    tags = {ID_TAG: our_id, RUN_TAG: run.id, STORE_TAG: run.store.url, "mlflow.user": record.user}
    made = client.create_run(experiment_id, run_name=run.id, tags=tags).info.run_id
    params = [Param(key, str(value)[:_MAX_LENGTH]) for key, value in _leaves(record.recipe)]
    for some in _batches([Param("kind", record.kind), Param("workers", str(record.workers)), *params], _MAX_PARAMS):
        client.log_batch(made, params=some)
    return str(made)


def _metric_name(name: str) -> str:
    """A name that MLflow allows: labels of models and of temperatures have other characters too."""
    return re.sub(r"[^/\w.\- :]", "_", name, flags=re.ASCII)


def _leaves(values: JsonObject, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The values of nested objects, with dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _batches(items: Iterable[Item], count: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while batch := list(islice(rest, count)):
        yield batch


def _line(error: Exception) -> str:
    """Server and reason, without an address that may contain a password."""
    address = urlparse(os.environ.get(TRACKING_VARIABLE, ""))
    reason = type(error).__name__ if "@" in address.netloc else " ".join(str(error).split())[:200]
    return f"{address.hostname or address.path}: {reason}"
