"""Jobs on a real Ray with killed processes: the results equal those of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray_cluster import (
    LONG,
    Ray,
    UndisturbedRuns,
    check_same_losses,
    losses,
    settings,
    shards,
    tmctl,
    tmctl_json,
    wait_for,
    wait_for_checkpoint,
)
from tinymusician.artifacts.blobs import blob_key
from tinymusician.artifacts.manifest import list_named
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore

pytestmark = pytest.mark.slow

TWO = ("--workers", "2")


def start_and_wait(ray: Ray, recipe: Path, store: LocalStore, name: str) -> None:
    """Start a run and wait until it has a checkpoint to go on from."""
    tmctl_json(ray, store, "submit", "distill", str(recipe), *settings(LONG), *TWO, "--name", name, "--no-wait")
    wait_for_checkpoint(store, name)


def kill(pids: list[int]) -> None:
    assert pids, "nothing to kill"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_killed_worker_is_restarted(ray: Ray, recipe: Path, store: LocalStore, undisturbed: UndisturbedRuns) -> None:
    start_and_wait(ray, recipe, store, "w")
    kill(ray.processes("ray::RayTrainWorker")[:1])
    wait_for(lambda: RunStore(store, "w").status().state == "SUCCEEDED")
    check_same_losses(losses(store, "w"), undisturbed.losses(2))


def test_a_worker_that_hangs(ray: Ray, recipe: Path, store: LocalStore, undisturbed: UndisturbedRuns) -> None:
    """It is named; the workers start again from the last checkpoint."""
    values = settings((*LONG, "training.hang_seconds=5"))
    tmctl_json(ray, store, "submit", "distill", str(recipe), *values, *TWO, "--name", "hang", "--no-wait")
    wait_for_checkpoint(store, "hang")
    os.kill(ray.processes("ray::RayTrainWorker")[0], signal.SIGSTOP)
    run = RunStore(store, "hang")
    wait_for(lambda: run.status().state in ("SUCCEEDED", "FAILED"))
    assert run.status().state == "SUCCEEDED", run.status().message
    assert re.search(r"training hangs: .*; no report from worker [01] on node \S+; the workers start again", run.log())
    check_same_losses(losses(store, "hang"), undisturbed.losses(2))


def test_workers_lost_without_progress(ray: Ray, recipe: Path, store: LocalStore) -> None:
    """One line names what was lost, and how to continue."""
    never = ("training.max_restarts=0", "training.steps=2000", "training.checkpoint_every=2000")
    words = ("submit", "distill", str(recipe), *settings((*never, "training.validate_every=2000")))
    tmctl_json(ray, store, *words, "--name", "lost", "--no-wait")
    run = RunStore(store, "lost")
    wait_for(lambda: (progress := run.progress()) is not None and progress.stage == "distill")
    kill(ray.processes("ray::RayTrainWorker"))
    wait_for(lambda: run.status().state == "FAILED")
    message = run.status().message
    assert "workers were lost 1 times without a new checkpoint, and training.max_restarts = 0: worker 0: " in message
    assert message.endswith("continue with --resume lost")
    assert "\n" not in message


def test_a_worker_killed_in_precompute(ray: Ray, recipe: Path, store: LocalStore, tmp_path: Path) -> None:
    """The shards are those of another run, each there once, and no draft of a file is left."""
    precompute = ("submit", "precompute", str(recipe), *settings(("sequences.prompts_per_shard=8",)), *TWO)
    tmctl_json(ray, store, *precompute, "--name", "p", "--no-wait")
    wait_for(lambda: len(shards(store)) >= 2)
    kill(ray.processes("ray::PoolActor")[:1])
    wait_for(lambda: RunStore(store, "p").status().state == "SUCCEEDED")
    calm = LocalStore(tmp_path / "calm")
    tmctl_json(ray, calm, *precompute)
    assert shards(store) == shards(calm)
    (teacher,) = list_named(store, "input-teacher")
    digests = {json.loads(note)["sha256"] for note in shards(store).values()} | {file.sha256 for file in teacher.files}
    assert {blob_key(digest) for digest in digests} == {entry.key for entry in store.list("blobs/")}
    assert not list((tmp_path / "store").rglob(".draft-*"))


def test_killed_driver_is_resumed(ray: Ray, recipe: Path, store: LocalStore, undisturbed: UndisturbedRuns) -> None:
    start_and_wait(ray, recipe, store, "d")
    kill(ray.processes("jobs.launch.supervisor --child"))
    wait_for(lambda: RunStore(store, "d").status().state == "FAILED")
    assert "killed by signal 9; continue it with --resume" in tmctl_json(ray, store, "status", "d")["message"]
    assert tmctl_json(ray, store, "submit", "distill", str(recipe), "--resume", "d")["state"] == "SUCCEEDED"
    check_same_losses(losses(store, "d"), undisturbed.losses(2))


@contextlib.contextmanager
def another_value(store: LocalStore, key: str) -> Iterator[None]:
    """Changes the metrics in a JSON object of the store, for a while."""
    honest = store.get(key)
    store.put(key, json.dumps({**json.loads(honest), "metrics": {"kl": 0.0}}).encode())
    yield
    store.put(key, honest)


def test_stop_and_resume(ray: Ray, recipe: Path, store: LocalStore, undisturbed: UndisturbedRuns) -> None:
    """A worker is suspended meanwhile, so that the run cannot end before it is stopped.

    Between the two, an attacker changes the checkpoint: nothing is learnt from it.
    """
    start_and_wait(ray, recipe, store, "s")
    (suspended,) = ray.processes("ray::RayTrainWorker")[:1]
    os.kill(suspended, signal.SIGSTOP)
    again = tmctl(ray, store, "submit", "distill", str(recipe), "--resume", "s")
    assert again.returncode == 1
    assert "is still running; stop it first" in again.stderr
    assert tmctl(ray, store, "stop", "s").stdout.strip() == "run s: STOPPED"
    with contextlib.suppress(ProcessLookupError):
        os.kill(suspended, signal.SIGCONT)
    with another_value(store, max(RunStore(store, "s").checkpoint_keys())):
        resume = ("submit", "distill", str(recipe), "--resume", "s", "--set", "training.max_restarts=0")
        assert tmctl(ray, store, *resume).returncode == 1
        assert "was not written by a job with this job key" in RunStore(store, "s").status().message
    assert tmctl_json(ray, store, "submit", "distill", str(recipe), "--resume", "s")["state"] == "SUCCEEDED"
    check_same_losses(losses(store, "s"), undisturbed.losses(2))
    assert "there is nothing to resume" in tmctl(ray, store, "submit", "distill", str(recipe), "--resume", "s").stderr


@pytest.mark.parametrize("killed", [(), ("--session-dir",)], ids=["everything", "only the head"])
def test_a_killed_head(
    ray: Ray, recipe: Path, store: LocalStore, undisturbed: UndisturbedRuns, killed: tuple[str, ...]
) -> None:
    """With or without supervisor and driver, which then must not speak for the resumed run; the store tells all."""
    start_and_wait(ray, recipe, store, "h")
    ray.kill(*killed)
    wait_for(lambda: not ray.processes("raylet"))
    assert "distill" in tmctl(ray, store, "logs", "h").stdout
    assert [run["id"] for run in tmctl_json(ray, store, "runs")] == ["h"]
    ray.start()
    assert tmctl_json(ray, store, "submit", "distill", str(recipe), "--resume", "h")["state"] == "SUCCEEDED"
    check_same_losses(losses(store, "h"), undisturbed.losses(2))
