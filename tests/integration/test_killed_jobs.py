"""Jobs on a real Ray whose processes are killed: what comes out is what an undisturbed run gives."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.ray_cluster import Ray, losses, settings, tmctl, told, wait_for
from tinymusician.artifacts.runs import RunFolder
from tinymusician.artifacts.store import LocalStore

pytestmark = pytest.mark.slow

TWO = ("--workers", "2")
LONG = ("training.steps=90", "training.checkpoint_every=10", "training.validate_every=30", "training.log_every=1")


@pytest.fixture(scope="module")
def undisturbed(ray: Ray, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of a run of two workers that nothing happens to."""
    store = LocalStore(tmp_path_factory.mktemp("undisturbed"))
    calm = told(ray, store, "submit", "distill", str(recipe), *settings(LONG), *TWO, "--name", "calm")
    assert calm["state"] == "SUCCEEDED"
    return losses(store, "calm")


def start_and_wait(ray: Ray, recipe: Path, store: LocalStore, name: str) -> None:
    """Start a run and wait until it has a checkpoint to go on from."""
    told(ray, store, "submit", "distill", str(recipe), *settings(LONG), *TWO, "--name", name, "--no-wait")
    wait_for(lambda: any("step-00000010.json" in entry.key for entry in store.list(f"runs/{name}/checkpoints/")))


def check_same(store: LocalStore, name: str, wanted: dict[int, float]) -> None:
    found = losses(store, name)
    assert sorted(found) == sorted(wanted)
    assert max(abs(found[step] - wanted[step]) for step in wanted) <= 1e-5


def kill(pids: list[int]) -> None:
    assert pids, "nothing to kill"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_a_killed_worker_is_restarted(ray: Ray, recipe: Path, store: LocalStore, undisturbed: dict[int, float]) -> None:
    start_and_wait(ray, recipe, store, "w")
    kill(ray.processes("ray::RayTrainWorker")[:1])
    wait_for(lambda: RunFolder(store, "w").status().state == "SUCCEEDED")
    check_same(store, "w", undisturbed)


def test_a_killed_driver_is_resumed(ray: Ray, recipe: Path, store: LocalStore, undisturbed: dict[int, float]) -> None:
    start_and_wait(ray, recipe, store, "d")
    kill(ray.processes("jobs.entry --child"))
    wait_for(lambda: RunFolder(store, "d").status().state == "FAILED")
    assert "killed by signal 9; continue it with --resume" in told(ray, store, "status", "d")["message"]
    assert told(ray, store, "submit", "distill", str(recipe), "--resume", "d")["state"] == "SUCCEEDED"
    check_same(store, "d", undisturbed)


def test_stop_and_resume(ray: Ray, recipe: Path, store: LocalStore, undisturbed: dict[int, float]) -> None:
    start_and_wait(ray, recipe, store, "s")
    again = tmctl(ray, store, "submit", "distill", str(recipe), "--resume", "s")
    assert again.returncode == 1
    assert "is still running; stop it first" in again.stderr
    assert tmctl(ray, store, "stop", "s").stdout.strip() == "run s: STOPPED"
    assert told(ray, store, "submit", "distill", str(recipe), "--resume", "s")["state"] == "SUCCEEDED"
    check_same(store, "s", undisturbed)
    assert "there is nothing to resume" in tmctl(ray, store, "submit", "distill", str(recipe), "--resume", "s").stderr


@pytest.mark.parametrize("killed", [(), ("--session-dir",)], ids=["everything", "only the head"])
def test_a_killed_head(
    ray: Ray, recipe: Path, store: LocalStore, undisturbed: dict[int, float], killed: tuple[str, ...]
) -> None:
    """With or without supervisor and driver, which then must not speak for the resumed run; the store tells all."""
    start_and_wait(ray, recipe, store, "h")
    ray.kill(*killed)
    wait_for(lambda: not ray.processes("raylet"))
    assert "distill" in tmctl(ray, store, "logs", "h").stdout
    assert [run["id"] for run in told(ray, store, "runs")] == ["h"]
    ray.start()
    assert told(ray, store, "submit", "distill", str(recipe), "--resume", "h")["state"] == "SUCCEEDED"
    check_same(store, "h", undisturbed)
