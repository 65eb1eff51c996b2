"""The whole pipeline on a real Ray, up to a device: skipped steps, kills, gates, pull."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ray_cluster import Ray, settings, tmctl, tmctl_json, wait_for
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore

pytestmark = pytest.mark.slow

SHORT = settings((
    "quantize.plan=paper", "quantize.sequences=2", "quantize.seconds=0.3", "quantize.parity_sequences=1",
    "evaluate.cost_runs=0", "evaluate.agreement_clips=0",
))  # fmt: skip


def states(facts: dict[str, list[dict[str, str]]]) -> list[str]:
    return [step["state"] for step in facts["pipeline"]]


def test_from_recipe_to_device(
    ray: Ray, evaluate_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, folder = LocalStore(tmp_path / "store"), tmp_path / "device"
    monkeypatch.setitem(ray.environment, "TMCTL_KEYS", str(tmp_path / "keys"))
    pipeline = ["submit", "pipeline", *evaluate_options, *SHORT, "--workers", "2"]
    early = tmctl(ray, store, *pipeline)
    assert early.returncode == 1
    assert "`tmctl signing-keys create` makes keys" in early.stderr, "before hours are spent"
    root = tmctl_json(ray, store, "signing-keys", "create")["root"][0]

    begun = tmctl(ray, store, *pipeline, "--name", "p1", "--no-wait")
    assert begun.returncode == 0, begun.stderr
    run = RunStore(store, "p1")
    wait_for(lambda: any((step.step, step.state) == ("quantize", "RUNNING") and step.run for step in run.pipeline()))
    ray.kill("jobs.launch.supervisor", "--child")
    wait_for(lambda: run.status().state == "FAILED")
    again = tmctl_json(ray, store, "submit", "pipeline", evaluate_options[0], "--resume", "p1")
    assert states(again) == ["SKIPPED", "SKIPPED", "SUCCEEDED", "SUCCEEDED", "SUCCEEDED"]
    assert run.log().count("== distill") == 1, "what was done is not done again"
    assert again["artifact"].startswith("tiny-bundle@sha256:")
    assert again["metrics"]["publish"] == {"release": "tiny-bundle@candidate", "version": 1}
    assert [one["id"] for one in tmctl_json(ray, store, "runs")] == ["p1"], "steps are shown with their pipeline"
    quantize = next(str(step.run) for step in run.pipeline() if step.step == "quantize")
    assert tmctl_json(ray, store, "status", quantize)["state"] == "SUCCEEDED", "a step has its run's name"
    assert "== quantize" in tmctl(ray, store, "logs", quantize).stdout
    status = tmctl(ray, store, "status", "p1").stdout
    assert "  evaluate: SUCCEEDED, p1.evaluate-" in status

    unchanged = tmctl_json(ray, store, *pipeline, "--name", "p2")
    assert states(unchanged) == ["SKIPPED"] * 5
    other = tmctl_json(ray, store, *pipeline, "--name", "p3", "--until", "quantize", "--set", "quantize.plan=float32")
    assert states(other) == ["SKIPPED", "SKIPPED", "SUCCEEDED", "NOT REQUESTED", "NOT REQUESTED"]
    tmctl_json(ray, store, "artifacts", "publish", other["artifact"])
    again = tmctl_json(ray, store, *pipeline, "--name", "p4")
    assert states(again) == ["SKIPPED"] * 4 + ["SUCCEEDED"], "the alias pointed at something else"
    assert again["metrics"]["publish"] == {"release": "tiny-bundle@candidate", "version": 3}
    late = tmctl(ray, store, *pipeline, "--from", "quantize", "--set", "training.steps=13")
    assert late.returncode == 1
    assert "--from quantize: distill has not been done with this recipe" in late.stdout + late.stderr
    wrong = tmctl(ray, store, *pipeline, "--from", "publish", "--until", "distill")
    assert "first publish: comes after last, distill" in wrong.stderr

    refused = tmctl(ray, store, "artifacts", "promote", "tiny-bundle@candidate")
    assert refused.returncode == 1
    assert "size: " in refused.stderr, "a student of random weights in float16 is no 45 % of its teacher"
    assert "--override REASON" in refused.stderr
    moved = tmctl_json(ray, store, "artifacts", "promote", "tiny-bundle@candidate", "--override", "a test")
    assert moved["about"]["why"]["overridden"] == "a test"
    assert moved["about"]["attestation"]["predicate"]["runDetails"]["metadata"]["invocationId"].startswith(
        "p1.quantize-"
    )
    result = tmctl_json(ray, store, "artifacts", "lineage", "tiny-bundle")
    assert [step["derived"].split("@")[0] for step in result["sources"]] == ["tiny-bundle", "tiny"]

    device = ["pull", "tiny-bundle@stable", "--to", str(folder), "--root-key", root]
    assert tmctl_json(ray, store, *device)["version"] == 1
    made = tmctl(
        ray, store, "generate", "a reel", "--model", str(folder), "-o", str(tmp_path / "out.wav"), "--seconds", "0.3"
    )
    assert made.returncode == 0, made.stderr
