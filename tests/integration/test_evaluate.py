"""The evaluation job on a real Ray: a folder of clips with a damaged one, and a killed worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ray_cluster import Ray, settings, tmctl, tmctl_json, wait_for
from tests.tiny import CLIPS, DAMAGED
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore
from tinymusician.evaluate.results import EvaluationResult
from tinymusician.evaluate.sweep_results import SweepResult

pytestmark = pytest.mark.slow


def test_two_workers_one_of_them_killed(ray: Ray, evaluate_options: list[str], tmp_path: Path) -> None:
    """No clip is generated twice, none is lost, the damaged one is named, and a later run generates nothing again."""
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
    lines = [line for line in folder.log().splitlines() if "generated " in line]
    assert len(lines) == len(set(lines))
    assert len(list(store.list("shards/clips/"))) == 2 * CLIPS

    result = folder.report(EvaluationResult)
    assert result.provenance.real_clips == CLIPS - 1
    conversions = result.provenance.conversions
    assert conversions["2 channels averaged"] == 1
    assert conversions["resampled from 16000 Hz"] == CLIPS / 2 - 1
    assert [DAMAGED in reason for reason in result.provenance.unreadable] == [True]
    models = {model.label: model for model in result.models}
    teacher, untrained = models["teacher"], models["untrained"]
    assert teacher.agreement is not None
    assert untrained.agreement is not None
    assert teacher.agreement.forward.value == pytest.approx(0, abs=1e-6)
    assert teacher.agreement.top_1.value == 1
    assert untrained.agreement.forward.value > 0.01
    assert result.reconstructed.fad is not None
    assert result.reconstructed.fad.value > 0
    assert set(untrained.distribution.labels) == {"instrument", "tempo", "key"}
    for model in (teacher, untrained):
        fad, cost = model.distribution.fad, model.cost
        assert fad is not None
        assert fad.low is not None
        assert cost is not None
        assert fad.low <= fad.value * (1 + 1e-9)
        assert fad.value > 0
        assert cost.memory > 5e6
        assert model.distribution.clips == CLIPS
    pages = folder.report_files()
    assert pages["html"].count(b"data:audio/flac") == 2 * 3
    assert b'src="http' not in pages["html"]
    assert b"| untrained |" in pages["md"]

    options = ["--model", "the teacher=teacher", "--model", "untrained", "--set", "evaluate.cost_runs=0"]
    again = tmctl_json(ray, store, "submit", "evaluate", *evaluate_options, *options, "--name", "e2")
    assert teacher.distribution.kad is not None
    assert again["metrics"]["the teacher"]["kad"] == pytest.approx(teacher.distribution.kad.value)
    assert "generated " not in RunStore(store, "e2").log()

    store.delete("runs/e2/report.html")
    store.delete(f"runs/e2/audio/{result.samples[0].clips[1].file}")
    repeat = ("submit", "evaluate", *evaluate_options[:1], "--resume", "e2", "--from")
    missing = tmctl(ray, store, *repeat, "render")
    assert missing.returncode == 1
    assert "audio sample 0-1.flac of the teacher is missing; run it again with `--from aggregate`" in missing.stdout
    assert tmctl_json(ray, store, *repeat, "aggregate")["state"] == "SUCCEEDED"
    assert RunStore(store, "e2").report_files()["html"] != pages["html"]
    repeated = RunStore(store, "e2").report(EvaluationResult)
    assert repeated.models[0].distribution == teacher.distribution


def test_unreadable_clip_can_end_the_run(ray: Ray, evaluate_options: list[str], tmp_path: Path) -> None:
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
    for (seed,) in RunStore(store, "s1").report(SweepResult).grids["skew"].values():
        assert seed.curves.rows[0]["held_out/test/kl"] > seed.final.kl
        assert seed.final.fluctuation >= -1e-9
    again = tmctl_json(
        ray, store, "submit", "sweep", *evaluate_options, *over, "--set", "sweep.seeds=2", "--name", "s2"
    )
    assert RunStore(store, "s2").log().count("trained skew") == 4
    hopeless = ["--set", "sweep.seeds=1", "--set", "training.seed=1", "--set", "training.learning_rate=1e30"]
    tmctl_json(ray, store, "submit", "sweep", *evaluate_options, *over, *hopeless, "--name", "s3")
    assert RunStore(store, "s3").log().count("diverged: ") == 4
    assert b"evaluated as of step 0: " in RunStore(store, "s3").report_files()["md"]
    assert len(RunStore(store, "s2").report(SweepResult).grids["skew"]["λ 0"]) == 2
    assert again["state"] == "SUCCEEDED"
