"""The base installation, without torch, transformers and Ray, pulls and runs a bundle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import write_bundle
from tests.faulty_server import faulty_server
from tinymusician.artifacts.manifest import publish
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.store import LocalStore
from tinymusician.models.musicgen import load_musicgen, model_location

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ABSENT = ("torch", "transformers", "ray", "onnx", "deepspeed", "matplotlib", "scipy", "boto3")


def test_generating_needs_neither_torch_nor_ray(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    write_bundle(load_musicgen("band-small"), model_location("band-small") / "tokenizer.json", bundle)
    source = tmp_path / "source"  # a build leaves files where it builds
    for part in ("tinymusician", "jobs", "serve"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__", "vendor"))
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source / part)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    binaries = tmp_path / "venv" / "bin"
    install = [str(binaries / "pip"), "install", "-q", "-c", str(ROOT / "constraints.txt"), str(source)]
    subprocess.run(install, check=True, cwd=tmp_path)
    look = f"import importlib.util as u; print([name for name in {ABSENT} if u.find_spec(name)])"
    result = subprocess.run([str(binaries / "python"), "-c", look], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

    package = next((tmp_path / "venv" / "lib").glob("python3*/site-packages/tinymusician"))
    assert not list(package.rglob("*.safetensors")), "the wheel has no weights for torch"
    assert sum(path.stat().st_size for path in package.rglob("*") if "__pycache__" not in path.parts) < 16e6
    environment = {**os.environ, "HOME": str(tmp_path / "home")}
    command = [str(binaries / "tmctl"), "generate", "a fast fiddle reel", "-o", "reel.wav", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    (clip,) = json.loads(ended.stdout)["clips"]
    assert (clip["output"], clip["seconds"], clip["unknown_words"]) == ("reel.wav", 5, [])
    ask = [str(binaries / "tmctl"), "ask", "Which instrument plays?", "--audio", "reel.wav", "--json"]
    answered = subprocess.run(ask, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert answered.returncode == 0, answered.stderr
    assert len(json.loads(answered.stdout)["answers"][0]["options"]) == 6
    entry = {"question": "What plays?", "correct_answer": "flute", "distractors": ["piano", "banjo", "harp", "lute"]}
    (tmp_path / "questions.json").write_text(json.dumps({"1": entry}))
    benchmark = [str(binaries / "tmctl"), "benchmark", "questions.json", "--text-only"]
    scored = subprocess.run(benchmark, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert scored.returncode == 0, scored.stderr
    assert "1 questions, rul; chance 0.250" in scored.stdout
    assert not (tmp_path / "home").exists(), "nothing else was written"
    serve = [str(binaries / "tmctl"), "serve"]
    refused = subprocess.run(serve, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "is not installed; run `pip install" in refused.stderr
    assert "[serve]" in refused.stderr

    command = [str(binaries / "tmctl"), "generate", "a fast fiddle reel", "--model", str(bundle), "--seconds", "2"]
    ended = subprocess.run(
        [*command, "-o", "out.wav", "--json"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["clips"][0]["seconds"] == 2
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert (file.getframerate(), file.getnframes()) == (16000, 32000)

    registry = ReleaseRegistry(LocalStore(tmp_path / "store"), tmp_path / "keys")
    pinned = registry.create().public_keys("root")[0]
    facts: dict[str, Any] = {"recipe": {}, "lineage": {}, "metrics": {}, "licence": "Apache-2.0"}
    registry.release(publish(registry.store, bundle, name="band", kind="bundle", **facts), "stable", {})
    with faulty_server(tmp_path / "store") as server:
        words = ["band@stable", "--to", str(tmp_path / "phone"), "--from", server.url, "--root-key", pinned]
        ended = subprocess.run(
            [str(binaries / "tmctl"), "pull", *words], capture_output=True, text=True, cwd=tmp_path, check=False
        )
    assert ended.returncode == 0, ended.stderr
    pulled = Path(ended.stdout.splitlines()[-1])
    assert sorted(path.name for path in pulled.iterdir()) == sorted(path.name for path in bundle.iterdir())

    store = {**os.environ, "TMCTL_STORE": (tmp_path / "store").as_uri()}
    command = [str(binaries / "tmctl"), "submit", "distill", "band"]
    weights = {"TINYMUSICIAN_WEIGHTS": str(ROOT / "tinymusician" / "models" / "weights")}
    for variables, message in (
        ({}, "error: model 'band-large': its weights are not in the wheel; set TINYMUSICIAN_WEIGHTS to the folder"),
        (weights, "error: ray is not installed; run `pip install '.[cluster]'` in a checkout"),
    ):
        ended = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env={**store, **variables}, check=False
        )
        assert ended.returncode == 1
        assert ended.stderr.startswith(message)
        assert len(ended.stderr.strip().splitlines()) == 1
