"""Distillation of all three components on a real Ray, with two workers and kills."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import yaml

from tests.ray_cluster import Ray, settings, tmctl, tmctl_json, wait_for, wait_for_checkpoint
from tests.tiny import write_tiny_musicgen
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore
from tinymusician.models.musicgen import load_musicgen

pytestmark = pytest.mark.slow

STAGES = ("text-encoder", "codec", "distill", "joint")


@pytest.fixture(scope="module")
def smaller(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe with smaller parts."""
    folder = tmp_path_factory.mktemp("smaller")
    write_tiny_musicgen(folder / "teacher")
    content = yaml.safe_load(recipe.read_text())
    content["teacher"]["model"] = str(folder / "teacher")
    content["sequences"]["seconds"] = 0.8  # the shortest windows of the sound's figures
    content["training"]["zero_stage"] = 1
    content |= {
        "text_encoder": {"layers": [0], "width": 8, "heads": 1, "feed_forward": 16, "steps": 30},
        "codec": {"filters": 2, "residual_layers": 0, "steps": 40, "learning_rate": 0.003},
        "joint": {"steps": 12, "learning_rate": 0.001},
    }
    path = folder / "smaller.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def rows_of(store: LocalStore, run: str, stage: str) -> list[dict[str, float]]:
    return [row for row in RunStore(store, run).metrics(stage) if "loss" in row]


def test_three_students(ray: Ray, smaller: Path, store: LocalStore, tmp_path: Path) -> None:
    """Killed while the codec learns, and while all are tuned: it goes on there, and every loss is the calm run's."""
    calm = tmctl_json(ray, store, "submit", "distill", str(smaller), "--workers", "2", "--name", "calm")
    figures = calm["metrics"]
    for name in ("text_kl", "text_states", "codec_spectral", "joint_kl", "joint_spectral", "kl"):
        assert figures[f"{name}_final"] < figures[f"{name}_initial"], name
    assert (
        figures["kl_final"] == figures["joint_kl_final"] == pytest.approx(sum(figures["kl_per_codebook"]) / 4, rel=1e-3)
    )
    assert figures["parameters_text_encoder"] < 0.5 * figures["teacher_parameters_text_encoder"]
    assert store.get("runs/calm/components.png").startswith(b"\x89PNG")

    tmctl_json(ray, store, "submit", "distill", str(smaller), "--workers", "2", "--name", "killed", "--no-wait")
    wait_for_checkpoint(store, "killed", 12, "codec")
    os.kill(ray.processes("ray::RayTrainWorker")[0], signal.SIGKILL)
    wait_for_checkpoint(store, "killed", 6, "joint")
    os.kill(ray.processes("ray::RayTrainWorker")[0], signal.SIGKILL)
    wait_for(lambda: RunStore(store, "killed").status().state == "SUCCEEDED")
    log = RunStore(store, "killed").log()
    assert log.count("text-encoder: from the beginning") == 1
    assert log.count("codec: from step") >= 1
    assert log.count("joint: from") == 2
    for stage in STAGES:
        expected, actual = rows_of(store, "calm", stage), rows_of(store, "killed", stage)
        assert [row["step"] for row in actual] == [row["step"] for row in expected]
        assert max(abs(one["loss"] - other["loss"]) for one, other in zip(actual, expected, strict=True)) <= 1e-5, stage

    assert tmctl(ray, store, "pull", calm["artifact"], "--to", str(tmp_path / "student")).returncode == 0
    student = load_musicgen(str(tmp_path / "student"))
    counted = sum(weight.numel() for weight in student.text_encoder.parameters())
    assert counted == figures["parameters_text_encoder"]
    made = tmctl_json(
        ray, store, "submit", "quantize", str(smaller), *settings(("quantize.plan=float32",)), "--name", "q"
    )
    assert made["state"] == "SUCCEEDED", "the bundle's graphs agree with PyTorch"
