"""Runs are copied to a real MLflow server, which has an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.environments.build import ROOT
from tests.ray_cluster import Ray, losses, running_ray, tmctl_json, wait_for
from tests.s3_server import free_port
from tests.tiny import write_tiny_recipe
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore

pytestmark = [pytest.mark.slow, pytest.mark.environments]
MLFLOW = "mlflow==3.17.2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server."""
    environment = Path(os.environ.get("TMCTL_ENVIRONMENTS", ROOT / ".environments")) / "mlflow"
    if not (environment / ".whole").exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([str(environment / "bin/python"), "-m", "pip", "install", "-q", MLFLOW], check=True)
        (environment / ".whole").touch()
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [str(environment / "bin/mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: _answers(f"{address}/health"), 120)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False


def api(server: str, method: str, path: str, **values: Any) -> Any:
    """What the server's REST API answers."""
    words = {"params": values} if method == "GET" else {"json": values}
    answer = requests.request(method, f"{server}/api/2.0/mlflow/{path}", timeout=10, **words)
    assert answer.ok, answer.text
    return answer.json()


def test_a_run_is_copied_to_mlflow(server: str, tmp_path: Path) -> None:
    """Settings, every loss and the end, as the store has them."""
    store, recipe = LocalStore(tmp_path / "store"), write_tiny_recipe(tmp_path)
    with running_ray({"MLFLOW_TRACKING_URI": server}, Ray) as ray:
        done = tmctl_json(ray, store, "submit", "distill", str(recipe), "--name", "m")
    (experiment,) = [
        one
        for one in api(server, "POST", "experiments/search", max_results=10)["experiments"]
        if one["name"] != "Default"
    ]
    (run,) = api(server, "POST", "runs/search", experiment_ids=[experiment["experiment_id"]])["runs"]
    assert (run["info"]["run_name"], run["info"]["status"]) == ("m", "FINISHED")
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert tags["tinymusician.artifact"] == done["artifact"]
    parameters = {one["key"]: one["value"] for one in run["data"]["params"]}
    assert parameters["training.steps"] == str(RunStore(store, "m").record().recipe["training"]["steps"])
    query = {"run_id": run["info"]["run_id"], "metric_key": "distill/loss", "max_results": 1000}
    history = api(server, "GET", "metrics/get-history", **query)["metrics"]
    assert {one["step"]: one["value"] for one in history} == pytest.approx(losses(store, "m"))
    metrics = {one["key"]: one["value"] for one in run["data"]["metrics"]}
    assert metrics["kl_final"] == pytest.approx(done["metrics"]["kl_final"])
