"""The copy of a run's metrics on an MLflow server; `make test-environments` has a real one."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from jobs.worker import mlflow
from tests.s3_server import free_port
from tests.unit.test_runs import record
from tinymusician.artifacts.run_state import RunResult
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore
from tinymusician.errors import ClusterError


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    run = RunStore(LocalStore(tmp_path / "store"), "r")
    run.write_record(record("r", recipe={"name": "band", "training": {"steps": 40}}))
    return run


def rows(first: int, last: int) -> list[dict[str, Any]]:
    return [{"step": step, "loss": 1 / step, "held_out/kl": None} for step in range(first, last + 1)]


def test_a_resumed_run_continues_the_same_run(run: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own store of files has every row of both, more than one request takes, and the end."""
    address = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for first, last in ((1, 1500), (1501, 1510)):
        logger = mlflow.MlflowLogger(run, "distill")
        for row in rows(first, last):
            logger.add(row)
        logger.close()
    run.submit()
    run.start()
    run.succeed(RunResult(artifact="a@sha256:0", metrics={"kl_final": 0.25, "plan": "paper", "real, τ": {"fad": 2}}))
    mlflow.end_run(run, "SUCCEEDED")
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name("tinymusician")
    assert experiment is not None
    (copy,) = client.search_runs([experiment.experiment_id])
    assert (copy.info.run_name, copy.info.status) == ("r", "FINISHED")
    assert copy.data.params == {"name": "band", "training.steps": "40", "workers": "2", "kind": "distill"}
    history = {one.step: one.value for one in client.get_metric_history(copy.info.run_id, "distill/loss")}
    assert history == {step: pytest.approx(1 / step) for step in range(1, 1511)}
    final = {name: value for name, value in copy.data.metrics.items() if name != "distill/loss"}
    assert final == {"kl_final": 0.25, "real_ _.fad": 2}, "MLflow allows fewer characters"


def test_a_server_that_does_not_answer_costs_the_copy_only(
    run: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    logger = mlflow.MlflowLogger(run, "distill")
    logger.add(rows(1, 1)[0])
    logger.close()
    logger.close()
    mlflow.end_run(run, "FAILED")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("MLflow: 127.0.0.1: ")
    assert first.endswith("the run goes on, and its metrics are in the store")
    assert second.startswith("MLflow: ")


def test_a_server_that_is_silent_delays_nothing(
    run: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes connections and never answers; nobody waits until that is known, so nothing is reported yet."""
    monkeypatch.setattr(mlflow, "_END_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        logger = mlflow.MlflowLogger(run, "distill")
        logger.add(rows(1, 1)[0])
        logger.close()
        mlflow.end_run(run, "FAILED")
        assert capsys.readouterr().out == ""


def test_runs_of_two_stores_with_one_name_are_two(
    run: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    other = RunStore(LocalStore(tmp_path / "other"), "r")
    other.write_record(record("r", recipe={"name": "other"}))
    for one in (run, other):
        mlflow.end_run(one, "FAILED")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("tinymusician")
    assert experiment is not None
    copies = client.search_runs([experiment.experiment_id])
    assert {copy.data.params["name"] for copy in copies} == {"band", "other"}


@pytest.mark.parametrize(
    ("address", "is_here", "sent"),
    [
        ("http://mlflow:5000", False, True),
        ("file:///home/me/mlruns", False, False),
        ("file:///home/me/mlruns", True, True),
    ],
)
def test_addresses_that_nodes_can_reach_are_sent(
    address: str, is_here: bool, sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert mlflow.shared_variables(is_here) == ({"MLFLOW_TRACKING_URI": address} if sent else {})


def test_a_password_in_the_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://joe:secret@mlflow")
    with pytest.raises(ClusterError, match="no passwords are sent to a cluster") as refused:
        mlflow.shared_variables(is_here=False)
    assert "secret" not in str(refused.value)
