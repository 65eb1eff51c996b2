"""Copies a run's settings and metrics to an MLflow server, if MLFLOW_TRACKING_URI names one.

The store stays the record: a server that does not answer costs its copy, never the run. Needs the extra `mlflow`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from tinymusician.artifacts.background import BackgroundWriter
from tinymusician.artifacts.run_state import State
from tinymusician.artifacts.runs import RunStore
from tinymusician.json_types import JsonObject

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    from tinymusician.training.metrics import Row

TRACKING_VARIABLE, EXPERIMENT_VARIABLE = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
RUN_TAG = "tinymusician.run"
"""The tag of MLflow's run with the name of ours; a resumed run continues the same one."""
_STATES: dict[State, str] = {"SUCCEEDED": "FINISHED", "FAILED": "FAILED", "STOPPED": "KILLED"}
_HTTP_LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
_MAX_METRICS, _MAX_PARAMS, _MAX_LENGTH = 1000, 100, 6000
"""MLflow's limits of a request, and of a parameter's length."""
Item = TypeVar("Item")
_MAX_ROWS = 100_000
"""Rows that wait for a server that does not answer; older ones are dropped."""


def is_used() -> bool:
    """Whether this process's environment names an MLflow server."""
    return bool(os.environ.get(TRACKING_VARIABLE))


class MlflowLogger:
    """A metric sink. It sends rows in a thread of its own, as metrics `STAGE/NAME`."""

    def __init__(self, run: RunStore, stage: str) -> None:
        self._run, self._stage = run, stage
        self._rows: list[tuple[int, Row]] = []
        self._lock, self._writer = threading.Lock(), BackgroundWriter()
        self._id, self._is_lost = "", False

    def add(self, row: Row) -> None:
        with self._lock:
            self._rows.append((time.time_ns() // 1_000_000, row))
            del self._rows[:-_MAX_ROWS]

    def flush(self) -> None:
        """Send soon; the server may be slow."""
        self._writer.submit("mlflow", self._send)

    def close(self) -> None:
        self.flush()
        self._writer.drain()

    def _send(self) -> None:
        with self._lock:
            rows = list(self._rows)
        try:
            client = _client()
            self._id = self._id or _find_or_create(client, self._run)
            for metrics in _batches(self._metrics(rows), _MAX_METRICS):
                client.log_batch(self._id, metrics=metrics)
        except Exception as error:  # of MLflow, of its HTTP client, or a missing package
            if not self._is_lost:
                print(f"MLflow: {_line(error)}; the run goes on, and its metrics are in the store", flush=True)
            self._is_lost = True
            return
        with self._lock:
            sent = {id(row) for _, row in rows}
            self._rows, self._is_lost = [one for one in self._rows if id(one[1]) not in sent], False

    def _metrics(self, rows: list[tuple[int, Row]]) -> Iterator[Metric]:
        from mlflow.entities import Metric

        for at, row in rows:
            for name, value in row.items():
                if name != "step" and value is not None:
                    yield Metric(f"{self._stage}/{name}", value, at, row["step"])


def end_run(run: RunStore, state: State) -> None:
    """Tell MLflow that a run has ended, with its artifact and final metrics, if it answers."""
    if not is_used():
        return
    try:
        from mlflow.entities import Metric, RunTag

        client, status = _client(), run.status()
        mlflow_run = _find_or_create(client, run)
        at = time.time_ns() // 1_000_000
        leaves = ((name, value) for name, value in _leaves(status.metrics) if not isinstance(value, bool))
        metrics = [Metric(name, value, at, 0) for name, value in leaves if isinstance(value, int | float)]
        for some in _batches(metrics, _MAX_METRICS):
            client.log_batch(mlflow_run, metrics=some)
        client.log_batch(mlflow_run, tags=[RunTag("tinymusician.artifact", status.artifact or "")])
        client.set_terminated(mlflow_run, _STATES[state])
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
    before = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run.id}'", max_results=1)
    if before:
        client.update_run(before[0].info.run_id, status="RUNNING")
        return str(before[0].info.run_id)
    record = run.record()
    tags = {RUN_TAG: run.id, "mlflow.user": record.user, "tinymusician.kind": record.kind}
    made = client.create_run(experiment_id, run_name=run.id, tags=tags).info.run_id
    params = [Param(key, str(value)[:_MAX_LENGTH]) for key, value in _leaves(record.recipe)]
    for some in _batches([*params, Param("workers", str(record.workers))], _MAX_PARAMS):
        client.log_batch(made, params=some)
    return str(made)


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
    return f"{os.environ[TRACKING_VARIABLE]}: {' '.join(str(error).split())[:200]}"
