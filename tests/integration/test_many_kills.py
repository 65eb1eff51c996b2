"""Any process of precompute and distill is killed at any moment; what comes out is what an undisturbed run gives.

How often is TINYMUSICIAN_KILLS (3): docs/lab-log.md has the figures of 20.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray_cluster import Ray, losses, settings, tmctl, told, wait_for
from tinymusician.artifacts.runs import RunFolder
from tinymusician.artifacts.store import LocalStore

log = logging.getLogger(__name__)
pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("TINYMUSICIAN_KILLS", "3"))
SEED = int(os.environ.get("TINYMUSICIAN_KILLS_SEED", "0"))
WORK = {
    "precompute": ("sequences.samples=8", "sequences.shard_prompts=8", "training.restarts=100"),
    "distill": ("signals.source=actors", "training.steps=90", "training.checkpoint_every=10", "training.restarts=100"),
}
VICTIMS = {
    "worker": ("ray::RayTrainWorker",),
    "teacher": ("ray::_Teacher",),
    "driver": ("jobs.entry --child",),
    "raylet": ("raylet/raylet",),
    "head": ("gcs_server",),
}
OF_A_JOB = ("ray::RayTrainWorker", "ray::_Teacher", "jobs.entry")


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    """A Ray that nobody else needs."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as folder:
        ray = Ray(Path(folder), {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))})
        ray.start()
        yield ray
        ray.kill()


def submitted(ray: Ray, store: LocalStore, recipe: Path, kind: str, name: str, *words: str) -> None:
    values = (*settings(WORK[kind]), "--workers", "2" if kind == "precompute" else "1")
    told(ray, store, "submit", kind, str(recipe), *values, "--name", name, *words)


def gone_on(ray: Ray, store: LocalStore, recipe: Path, kind: str, name: str) -> None:
    """See that the run goes on: by itself, or resumed, on a Ray that is started anew where its head or raylet died."""
    run, resumed = RunFolder(store, name), False
    deadline = time.monotonic() + 240
    while run.status().state not in ("SUCCEEDED", "RUNNING") or not ray.processes("jobs.entry"):
        assert time.monotonic() < deadline, f"{name} did not go on: {run.status()}\n{run.log()[-2000:]}"
        if run.status().state == "SUCCEEDED":
            return
        if not (ray.processes("gcs_server") and ray.processes("raylet/raylet")):
            wait_for(lambda: not any(ray.processes(word) for word in OF_A_JOB))
            ray.kill()
            ray.start()
            resumed = False
        if not resumed and not ray.processes("jobs.entry --child"):
            values = settings(WORK[kind])
            resumed = (
                tmctl(ray, store, "submit", kind, str(recipe), *values, "--resume", name, "--no-wait").returncode == 0
            )
        time.sleep(0.5)


def test_random_kills(own: Ray, recipe: Path, tmp_path: Path) -> None:
    calm = LocalStore(tmp_path / "calm")
    for kind in WORK:
        submitted(own, calm, recipe, kind, kind)
    wanted, shards = losses(calm, "distill"), {entry.key: entry.size for entry in calm.list("shards/")}
    rng, kills, round_ = random.Random(SEED), 0, 0
    while kills < KILLS:
        store, round_ = LocalStore(tmp_path / f"round-{round_}"), round_ + 1
        for kind in WORK:
            submitted(own, store, recipe, kind, kind, "--no-wait")
            run = RunFolder(store, kind)
            while run.status().state != "SUCCEEDED":
                if kills < KILLS:
                    time.sleep(rng.uniform(0, 12))
                    victim = rng.choice(list(VICTIMS))
                    if run.status().state == "RUNNING" and (found := own.processes(*VICTIMS[victim])):
                        os.kill(rng.choice(found), signal.SIGKILL)
                        kills += 1
                        log.info("kill %d: %s of %s, %s", kills, victim, kind, run.progress())
                gone_on(own, store, recipe, kind, kind)
                time.sleep(0.5)
        found_losses = losses(store, "distill")
        assert sorted(found_losses) == sorted(wanted)
        assert max(abs(found_losses[step] - wanted[step]) for step in wanted) <= 1e-5
        assert {entry.key: entry.size for entry in store.list("shards/")} == shards
        wait_for(lambda: not any(own.processes(word) for word in OF_A_JOB))
        store.sweep(age=0)
        assert not list((tmp_path / f"round-{round_ - 1}").rglob(".draft-*"))
