"""Random kills of all processes of precompute and distill: the results equal those of an undisturbed run.

`make test-kills` kills ten processes of each; TINYMUSICIAN_KILLS says another number.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.ray_cluster import Ray, losses, running_ray, settings, shards, tmctl, tmctl_json, wait_for
from tinymusician.artifacts.blobs import blob_key
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore

log = logging.getLogger(__name__)
pytestmark = [pytest.mark.slow, pytest.mark.kills]

KILLS = int(os.environ.get("TINYMUSICIAN_KILLS", "10"))
SEED = int(os.environ.get("TINYMUSICIAN_KILLS_SEED", "0"))
WORK = {
    "precompute": ("sequences.samples_per_prompt=60", "sequences.prompts_per_shard=8", "training.max_restarts=100"),
    "distill": (
        "signals.source=actors",
        "training.steps=150",
        "training.checkpoint_every=10",
        "training.max_restarts=100",  # here kills come before checkpoints, too
    ),
}
VICTIMS = {
    "worker": ("ray::RayTrainWorker",),
    "actor": ("ray::PoolActor",),
    "teacher": ("ray::TeacherActor",),
    "driver": ("jobs.launch.supervisor --child",),
    "raylet": ("raylet/raylet",),
    "head": ("gcs_server",),
}
OF_A_JOB = ("ray::RayTrainWorker", "ray::PoolActor", "ray::TeacherActor", "jobs.launch.supervisor")


@pytest.fixture
def private_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    """A Ray cluster of this test alone."""
    with running_ray({"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}, Ray) as ray:
        yield ray


def submitted(ray: Ray, store: LocalStore, recipe: Path, kind: str, name: str, *words: str) -> None:
    values = (*settings(WORK[kind]), "--workers", "2" if kind == "precompute" else "1")
    tmctl_json(ray, store, "submit", kind, str(recipe), *values, "--name", name, *words)


def restart_if_lost(ray: Ray) -> bool:
    """Start a new Ray if the head or raylet of this one died; returns whether it did."""
    if ray.processes("gcs_server") and ray.processes("raylet/raylet"):
        return False
    wait_for(lambda: not any(ray.processes(word) for word in OF_A_JOB))
    ray.kill()
    ray.start()
    return True


def gone_on(ray: Ray, store: LocalStore, recipe: Path, kind: str, name: str) -> None:
    """Check that the run continues by itself or with --resume, on a new Ray if its head or raylet died."""
    run, resumed = RunStore(store, name), False
    deadline = time.monotonic() + 240
    while run.status().state not in ("SUCCEEDED", "RUNNING") or not ray.processes("jobs.launch.supervisor"):
        assert time.monotonic() < deadline, f"{name} did not go on: {run.status()}\n{run.log()[-2000:]}"
        if run.status().state == "SUCCEEDED":
            return
        resumed = not restart_if_lost(ray) and resumed
        if not resumed and not ray.processes("jobs.launch.supervisor --child"):
            again = tmctl(ray, store, "submit", kind, str(recipe), "--resume", name, "--no-wait")
            resumed = again.returncode == 0
        time.sleep(0.5)


def works(ray: Ray) -> bool:
    """Whether a worker lives that can be killed, or the run's supervisor has died and must be replaced."""
    has_supervisor = bool(ray.processes("jobs.launch.supervisor"))
    return not has_supervisor or bool(ray.processes(*VICTIMS["worker"]) or ray.processes(*VICTIMS["actor"]))


@pytest.mark.parametrize("kind", WORK)
def test_random_kills(private_ray: Ray, recipe: Path, tmp_path: Path, kind: str) -> None:
    """The same shards, each once; the same loss at every step; no process and no draft of a file is left."""
    calm = LocalStore(tmp_path / "calm")
    submitted(private_ray, calm, recipe, kind, kind)
    rng, kills = random.Random(f"{kind} {SEED}"), 0
    killed = dict.fromkeys(VICTIMS, 0)
    for attempt in count():  # one may end before it is killed
        if kills >= KILLS:
            break
        place = tmp_path / str(attempt)
        store = LocalStore(place)
        restart_if_lost(private_ray)  # a run can succeed although its head or raylet was killed at its end
        submitted(private_ray, store, recipe, kind, kind, "--no-wait")
        run = RunStore(store, kind)
        while run.status().state != "SUCCEEDED":
            if kills < KILLS:
                if rng.random() < 0.7:  # else while it starts, too
                    wait_for(lambda run=run: works(private_ray) or run.status().state not in ("PENDING", "RUNNING"))
                time.sleep(rng.uniform(0, 12))
                alive = {name: pids for name, words in VICTIMS.items() if (pids := private_ray.processes(*words))}
                if run.status().state == "RUNNING" and alive:
                    victim = min(sorted(alive), key=lambda name: (killed[name], rng.random()))
                    killed[victim] += 1
                    os.kill(rng.choice(alive[victim]), signal.SIGKILL)
                    kills += 1
                    log.info("kill %d of %s: %s, at %s", kills, kind, victim, run.progress())
            gone_on(private_ray, store, recipe, kind, kind)
            time.sleep(0.5)
        assert shards(store) == shards(calm)
        blobs, expected_blobs = ({entry.key for entry in one.list("blobs/")} for one in (store, calm))
        named = {blob_key(json.loads(note)["sha256"]) for note in shards(store).values()}
        assert named < blobs, "and those of the teacher, which was imported"
        assert kind != "precompute" or blobs == expected_blobs
        if kind == "distill":
            actual, expected = losses(store, kind), losses(calm, kind)
            assert sorted(actual) == sorted(expected)
            assert max(abs(actual[step] - expected[step]) for step in expected) <= 1e-5
        wait_for(lambda: not any(private_ray.processes(word) for word in OF_A_JOB))
        assert not list(place.rglob(".draft-*"))


def test_twenty_lost_workers(private_ray: Ray, recipe: Path, tmp_path: Path) -> None:
    """With a new checkpoint after each, they end no run, and change no loss."""
    values = settings(("training.steps=3000", "training.checkpoint_every=10", "training.log_every=1"))
    words, stores = ("submit", "distill", str(recipe), *values), [LocalStore(tmp_path / name) for name in "ab"]
    tmctl_json(private_ray, stores[0], *words, "--name", "run")
    tmctl_json(private_ray, stores[1], *words, "--name", "run", "--no-wait")
    run, seen = RunStore(stores[1], "run"), frozenset[str]()
    for _ in range(20):
        wait_for(lambda: bool(run.checkpoint_keys() - seen))  # noqa: B023 - called at once
        (pid,) = private_ray.processes("ray::RayTrainWorker")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: pid not in private_ray.processes("ray::RayTrainWorker"))  # noqa: B023 - called at once
        seen |= run.checkpoint_keys()  # with those that it wrote meanwhile
    wait_for(lambda: run.status().state in ("SUCCEEDED", "FAILED"))
    assert run.status().state == "SUCCEEDED", run.status().message
    assert run.log().count("workers were lost") == 20
    actual, expected = (losses(store, "run") for store in stores)
    assert actual.keys() == expected.keys()
    assert max(abs(actual[step] - expected[step]) for step in expected) <= 1e-5
