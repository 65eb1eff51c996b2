"""The evaluation job on a real Ray: a folder of clips with a damaged one, and a killed worker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.linalg import eigvals

from tests.ray_cluster import Ray, settings, tmctl, tmctl_json, wait_for
from tests.tiny import CLIPS, DAMAGED
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore
from tinymusician.evaluate.codec_model import EncodecEmbedder
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
    assert ray.processes("ray::PoolActor")
    ray.kill("ray::PoolActor")
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
    assert f"{DAMAGED}: cannot be read as audio" in ended.stderr, "before a job starts"
    assert "Traceback" not in ended.stdout + ended.stderr


def test_folders_of_audio_alone(ray: Ray, evaluate_options: list[str], recipe: Path, tmp_path: Path) -> None:
    """No captions, no models: FAD equals that of SciPy's eigenvalues, also against the saved statistics."""
    store, random = LocalStore(tmp_path / "store"), np.random.default_rng(0)
    embedder = EncodecEmbedder(str(recipe.parent / "teacher"))
    length = round(0.4 * embedder.rate)
    for name, level in (("real", 0.1), ("mine", 0.2), ("theirs", 0.3)):
        (tmp_path / name).mkdir()
        for number in range(5):
            soundfile.write(tmp_path / name / f"{number}.wav", random.normal(0, level, length), embedder.rate, "DOUBLE")
    (tmp_path / "theirs" / "2.mp3").write_bytes(b"no sound")
    (tmp_path / "real" / "3.txt").write_text("a slow fiddle reel")
    folders = ["--audio", f"{tmp_path / 'mine'}", "--audio", f"other={tmp_path / 'theirs'}"]
    submit = ("submit", "evaluate", *evaluate_options)
    run = tmctl_json(ray, store, *submit, *folders, "--reference", str(tmp_path / "real"), "--name", "a1")
    result = RunStore(store, "a1").report(EvaluationResult)
    assert result.models == ()
    assert result.reconstructed is None
    assert (result.provenance.real_clips, result.provenance.clips) == (5, 0)

    means, covariances = [], []
    for name in ("real", "mine"):
        waves = [soundfile.read(path, dtype="float32")[0] for path in sorted((tmp_path / name).glob("*.wav"))]
        vectors = np.concatenate(embedder(waves)).astype(np.float64)
        means.append(vectors.mean(axis=0))
        covariances.append(np.cov(vectors.T))
    roots = np.sqrt(eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
    expected = np.square(means[0] - means[1]).sum() + sum(map(np.trace, covariances)) - 2 * roots
    mine, other = result.folders
    assert (mine.label, other.label) == ("mine", "other")
    assert mine.distribution.fad is not None
    assert mine.distribution.fad.value == pytest.approx(expected, rel=1e-3)
    assert mine.distribution.clap is not None, "file 3 has the caption of the real clip of its name"
    assert len(mine.distribution.clap.score.values) == 1
    assert (mine.distribution.clips, other.distribution.clips) == (5, 5)
    assert "2.mp3: cannot be read as audio" in other.audio.unreadable[0]
    assert run["metrics"]["mine"]["fad"] == mine.distribution.fad.value
    assert RunStore(store, "a1").report_files()["html"].count(b"data:audio/flac") == 3 * 2

    file = tmp_path / "reference.npz"
    assert tmctl(ray, store, "runs", "reference", "a1", "-o", str(file)).returncode == 0
    again = tmctl_json(ray, store, *submit, *folders[:2], "--reference", str(file), "--name", "a2")
    assert again["metrics"]["mine"]["fad"] == mine.distribution.fad.value
    assert again["metrics"]["mine"]["kad"] == run["metrics"]["mine"]["kad"]
    prompts = tmctl(ray, store, *submit, "--model", "teacher", "--reference", str(file), "--dry-run")
    assert prompts.returncode == 1
    assert "reference statistics have no captions; give the models' prompts by path" in prompts.stderr


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
