"""A run's results do not depend on the source of teacher signals or on the number of workers, on a real Ray."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.ray_cluster import (
    LONG,
    Ray,
    UndisturbedRuns,
    check_same_losses,
    losses,
    settings,
    tmctl,
    tmctl_json,
    wait_for,
    wait_for_checkpoint,
)
from tests.tiny import write_tone
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore, Store

pytestmark = pytest.mark.slow

ACTORS = ("signals.source=actors",)


def distill(ray: Ray, store: Store, recipe: Path, name: str, *values: str, workers: int = 1) -> None:
    ended = tmctl_json(
        ray, store, "submit", "distill", str(recipe), *settings(values), "--workers", str(workers), "--name", name
    )
    assert ended["state"] == "SUCCEEDED"


def test_cached_signals_train_like_online_ones(ray: Ray, recipe: Path, store: LocalStore, tmp_path: Path) -> None:
    """Shards are made once, by the first run; training from them gives the online losses."""
    guided = [str(recipe), "--set", "teacher.target=guided"]
    from_shards = [*guided, "--set", "signals.source=cached"]
    missing = tmctl(ray, store, "submit", "distill", *from_shards, "--name", "early")
    assert missing.returncode == 1
    assert "of the teacher's shards are missing; run `tmctl submit precompute`" in missing.stdout
    assert "Traceback" not in missing.stdout + missing.stderr
    made = tmctl_json(ray, store, "submit", "precompute", *guided, "--workers", "2", "--name", "shards")
    assert made["state"] == "SUCCEEDED"
    assert made["metrics"]["shards"] == 5 + 1, "those to train on, and those to judge by"
    cached = tmctl_json(ray, store, "submit", "distill", *from_shards, "--name", "cached")
    assert cached["state"] == "SUCCEEDED"
    tmctl_json(ray, store, "submit", "distill", *guided, "--name", "online")
    check_same_losses(losses(store, "cached"), losses(store, "online"))
    assert tmctl(ray, store, "pull", cached["artifact"], "--to", str(tmp_path / "out")).returncode == 0
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert saved["guidance_scale"] == 1, "its guidance is in its weights; generate() must not guide once more"


def test_a_teacher_on_an_actor_that_is_killed(
    ray: Ray, recipe: Path, store: LocalStore, undisturbed: UndisturbedRuns
) -> None:
    """It samples, and answers ahead of the worker; Ray starts it again, and the run does not notice."""
    tmctl_json(
        ray, store, "submit", "distill", str(recipe), *settings((*LONG, *ACTORS)), "--name", "actors", "--no-wait"
    )
    wait_for_checkpoint(store, "actors")
    (teacher,) = ray.processes("ray::TeacherActor")
    os.kill(teacher, signal.SIGKILL)
    wait_for(lambda: RunStore(store, "actors").status().state == "SUCCEEDED")
    check_same_losses(losses(store, "actors"), undisturbed.losses(1))
    assert RunStore(store, "actors").log().count("distill: from") == 1, "the worker was not restarted"
    wait_for(lambda: not ray.processes("ray::TeacherActor"))


def test_tensor_parallel_teacher_on_two_workers(ray: Ray, recipe: Path, store: LocalStore, tmp_path: Path) -> None:
    """On samples and clips, which each worker, or both as a team, make once."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(3):
        write_tone(clips / f"{number}.wav", 0.5 + number)
        (clips / f"{number}.txt").write_text("a slow fiddle reel")
    sequences = (f"sequences.clips={clips}", "sequences.clip_share=0.2")
    distill(ray, store, recipe, "whole", *sequences, workers=2)
    kinds = {entry.key.split("/")[1] for entry in store.list("shards/")}
    assert kinds == {"samples", "codes"}
    for entry in list(store.list("shards/")):
        store.delete(entry.key)
    distill(ray, store, recipe, "split", "teacher.tensor_parallel_size=2", *sequences, workers=2)
    check_same_losses(losses(store, "split"), losses(store, "whole"))
    three = (*settings(("teacher.tensor_parallel_size=3",)), "--workers", "2")
    assert (
        "must divide the teacher's 4 attention heads"
        in tmctl(ray, store, "submit", "distill", str(recipe), *three).stderr
    )
    alone = tmctl(ray, store, "submit", "distill", str(recipe), *settings(("teacher.tensor_parallel_size=2",)))
    assert "--workers 1: teacher.tensor_parallel_size = 2 needs a multiple of it" in alone.stdout + alone.stderr


def test_resume_with_other_workers_and_zero_stage(
    ray: Ray, recipe: Path, store: LocalStore, undisturbed: UndisturbedRuns
) -> None:
    """Its steps have as many sequences as before, however many workers there are now."""
    began = (*settings((*LONG, "training.zero_stage=1")), "--workers", "2", "--name", "r", "--no-wait")
    tmctl_json(ray, store, "submit", "distill", str(recipe), *began)
    wait_for_checkpoint(store, "r")
    tmctl(ray, store, "stop", "r")
    resumed = ("--resume", "r", "--workers", "1", "--set", "training.zero_stage=3")
    assert tmctl_json(ray, store, "submit", "distill", str(recipe), *resumed)["state"] == "SUCCEEDED"
    record = RunStore(store, "r").record()
    assert (record.workers, record.recipe["training"]["zero_stage"]) == (1, 3)
    check_same_losses(losses(store, "r"), undisturbed.losses(2))
    refused = tmctl(ray, store, "submit", "distill", str(recipe), "--resume", "r", "--set", "training.seed=1")
    assert "resumes with its stored recipe, of which only training.device" in refused.stderr


def test_non_finite_steps_are_skipped_up_to_the_limit(ray: Ray, recipe: Path, store: LocalStore) -> None:
    """A rate that no weight survives: one step is left out, the next one ends the run, with all there is to know."""
    wild = (
        "training.learning_rate=1e37",
        "training.warmup_steps=0",
        "training.max_skipped_steps=1",
        "training.max_restarts=0",
    )
    ended = tmctl(ray, store, "submit", "distill", str(recipe), *settings(wild), "--name", "wild")
    assert ended.returncode == 1
    lines = [line for line in ended.stdout.splitlines() if line]
    assert len(lines) == 1, ended.stdout + ended.stderr
    (line,) = lines
    assert "on rows" in line
    assert "the last good checkpoint is of step 0" in line
    run = RunStore(store, "wild")
    log = run.log()
    assert log.count("is skipped") == 1
    assert log.count("distill: from") == 2
    assert len(run.skipped_steps("distill")) == 1
