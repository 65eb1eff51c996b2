"""The evaluation job on a real Ray: clips of a folder, a damaged one among them, and a worker that is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ray_cluster import Ray, settings, tmctl, tmctl_json, wait_for
from tests.tiny import CLIPS, DAMAGED
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore

pytestmark = pytest.mark.slow


def report(store: LocalStore, run: str) -> Any:
    return json.loads(store.get(f"runs/{run}/report.json"))


def test_two_workers_one_of_them_killed(ray: Ray, evaluate_options: list[str], tmp_path: Path) -> None:
    """No clip is played twice, none is lost, the damaged one is named, and a later run plays nothing again."""
    store = LocalStore(tmp_path / "store")
    models = ["--model", "untrained", "--model", "teacher"]
    ended = tmctl(
        ray, store, "submit", "evaluate", *evaluate_options, *models, "--workers", "2", "--name", "e1", "--no-wait"
    )
    assert ended.returncode == 0, ended.stderr
    wait_for(lambda: any(True for _ in store.list("shards/clips/")))
    ray.kill("ray::_LazyActor")
    folder = RunStore(store, "e1")
    wait_for(lambda: folder.status().state in {"SUCCEEDED", "FAILED"})
    assert folder.status().state == "SUCCEEDED", folder.log()
    lines = [line for line in folder.log().splitlines() if "played " in line]
    assert len(lines) == len(set(lines))
    assert len(list(store.list("shards/clips/"))) == 2 * CLIPS

    result = report(store, "e1")
    assert result["how"]["real clips"] == CLIPS - 1
    done = result["how"]["done to them"]
    assert done["2 channels averaged"] == 1
    assert done["resampled from 16000 Hz"] == CLIPS / 2 - 1
    assert sum(DAMAGED in what for what in done) == 1
    teacher, untrained = (result["models"][name] for name in ("teacher", "untrained"))
    assert teacher["agreement"]["forward"]["value"] == pytest.approx(0, abs=1e-6)
    assert result["models"]["real, coded"]["fad"]["value"] > 0
    assert teacher["agreement"]["top_1"]["value"] == 1
    assert untrained["agreement"]["forward"]["value"] > 0.01
    assert set(untrained["labels"]) == {"instrument", "tempo", "key"}
    for one in (teacher, untrained):
        assert one["fad"]["low"] <= one["fad"]["value"] * (1 + 1e-9)
        assert one["fad"]["value"] > 0
        assert one["cost"]["memory"] > 5e6
        assert one["clips"] == CLIPS
    page = store.get("runs/e1/report.html").decode()
    assert page.count("data:audio/flac") == 2 * 3
    assert 'src="http' not in page
    assert "| untrained |" in store.get("runs/e1/report.md").decode()

    models = ["--model", "the teacher=teacher", "--model", "untrained", "--set", "evaluate.cost_runs=0"]
    again = tmctl_json(ray, store, "submit", "evaluate", *evaluate_options, *models, "--name", "e2")
    assert again["metrics"]["the teacher"]["kad"] == pytest.approx(teacher["kad"]["value"])
    assert "played " not in RunStore(store, "e2").log()


def test_a_damaged_clip_can_be_refused(ray: Ray, evaluate_options: list[str], tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    few = ["--model", "teacher", "--set", "evaluate.agreement_clips=0", "--set", "evaluate.cost_runs=0"]
    assert tmctl_json(ray, store, "submit", "evaluate", *evaluate_options, *few)["state"] == "SUCCEEDED", (
        "it is skipped"
    )
    ended = tmctl(ray, store, "submit", "evaluate", *evaluate_options, *few, "--set", "evaluate.on_unreadable=refuse")
    assert ended.returncode == 1
    assert f"{DAMAGED}: cannot be read as audio" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr


def test_a_sweep_trains_each_student_once(ray: Ray, evaluate_options: list[str], tmp_path: Path) -> None:
    """Two objectives' worth of trainings on two actors; a later sweep over more seeds trains the new ones only."""
    store = LocalStore(tmp_path / "store")
    few = settings(("sweep.clips=4", "training.steps=4", "training.warmup_steps=1", "training.validate_every=2"))
    over = ["--over", "skew", *few, "--workers", "2"]
    run = tmctl_json(ray, store, "submit", "sweep", *evaluate_options, *over, "--set", "sweep.seeds=1", "--name", "s1")
    assert set(run["metrics"]["skew"]) == {"λ 0", "λ 0.1", "λ 0.3", "λ 0.5"}
    log = RunStore(store, "s1").log()
    assert log.count("trained skew") == 4
    assert not list(store.list("runs/s1/checkpoints/trials/"))
    grid = report(store, "s1")["grids"]["skew"]
    for (one,) in grid.values():
        assert one["curves"][0]["held_out/test/kl"] > one["final"]["kl"]
        assert one["final"]["fluctuation"] >= -1e-9
    again = tmctl_json(
        ray, store, "submit", "sweep", *evaluate_options, *over, "--set", "sweep.seeds=2", "--name", "s2"
    )
    assert RunStore(store, "s2").log().count("trained skew") == 4
    hopeless = ["--set", "sweep.seeds=1", "--set", "training.seed=1", "--set", "training.learning_rate=1e30"]
    tmctl_json(ray, store, "submit", "sweep", *evaluate_options, *over, *hopeless, "--name", "s3")
    assert RunStore(store, "s3").log().count("diverged: ") == 4
    assert "judged as of step 0: " in store.get("runs/s3/report.md").decode()
    assert len(report(store, "s2")["grids"]["skew"]["λ 0"]) == 2
    assert again["state"] == "SUCCEEDED"
