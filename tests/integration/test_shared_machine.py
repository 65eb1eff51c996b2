"""A job and an endpoint on one local Ray with two CPUs: neither blocks the other, and what waits says for what."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from jobs.launch.local_ray import LocalRay
from tests.ray_cluster import BIN, Ray, settings, wait_for
from tests.s3_server import free_port
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore

pytestmark = pytest.mark.slow
STEPS = settings(("training.steps=100000", "training.validate_every=100000", "training.checkpoint_every=100000"))


class LocalUser:
    """A user whose local Ray is the tests' Ray: no cluster is named."""

    def __init__(self, ray: Ray, folder: Path) -> None:
        state = folder / "state" / "tinymusician" / "local-ray.json"
        state.parent.mkdir(parents=True)
        state.write_text(LocalRay(address=ray.address, gcs_port=ray.gcs_port).model_dump_json())
        self.store = LocalStore(folder / "store")
        self.environment = {**ray.environment, "XDG_STATE_HOME": str(folder / "state"), "TMCTL_STORE": self.store.url}
        del self.environment["TMCTL_CLUSTER"]
        self.port = free_port()

    def tmctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "tmctl"), *words], env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )

    def serve(self, bundle: Path, *words: str) -> None:
        ended = self.tmctl("serve", str(bundle), "--port", str(self.port), "--detach", *words)
        assert ended.returncode == 0, ended.stderr

    def train(self, recipe: Path, name: str, *words: str) -> RunStore:
        ended = self.tmctl("submit", "distill", str(recipe), "--name", name, "--no-wait", *STEPS, *words)
        assert ended.returncode == 0, ended.stderr
        return RunStore(self.store, name)

    def generates(self) -> bool:
        body = {"prompt": "a march", "seconds": 1}
        return requests.post(f"http://127.0.0.1:{self.port}/v1/audio/generations", json=body, timeout=30).ok


@pytest.fixture
def user(ray: Ray, tmp_path: Path) -> Iterator[LocalUser]:
    result = LocalUser(ray, tmp_path)
    yield result
    result.tmctl("serve", "--stop")


def step_of(run: RunStore) -> int:
    progress = run.progress()
    return progress.step if progress is not None and progress.stage == "distill" else 0


@pytest.mark.parametrize("first", ["endpoint", "job"])
def test_a_job_and_an_endpoint_both_make_progress(user: LocalUser, bundle: Path, recipe: Path, first: str) -> None:
    if first == "endpoint":
        user.serve(bundle)
    run = user.train(recipe, "beside")
    if first == "job":
        wait_for(lambda: step_of(run) > 0, 60)
        user.serve(bundle)
    wait_for(lambda: step_of(run) > 0, 60)
    before = step_of(run)
    assert user.generates()
    wait_for(lambda: step_of(run) > before, 30)
    assert user.tmctl("stop", "beside").returncode == 0


def test_what_a_job_waits_for(user: LocalUser, bundle: Path, recipe: Path) -> None:
    """The endpoint reserves a CPU here, so that the training of two workers has to wait until it ends.

    The actors that compute the sequences may wait before: for two CPUs, or for a second one.
    """
    user.serve(bundle, "--set", "num_cpus=1", "--threads", "1")
    command = [str(BIN / "tmctl"), "submit", "distill", str(recipe), "--name", "waits", "--workers", "2"]
    process = subprocess.Popen(command, env=user.environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    expected, lines = "waiting for 2 CPUs: 1 of 2 are free; the endpoint uses 1", list[str]()
    while expected not in lines:
        lines.append(line := process.stderr.readline().rstrip("\n"))
        assert line, lines
    wait_for(lambda: expected in user.tmctl("status", "waits").stdout, 60)
    assert user.tmctl("serve", "--stop").returncode == 0
    assert process.wait(120) == 0, process.stderr.read()
