"""The GPU benchmark runs with PyTorch, transformers, NumPy and safetensors alone; here on a CPU, with small shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environments.build import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.environments]
PACKAGES = ("torch==2.13.0", "numpy==2.4.6", "safetensors==0.8.0")


def python_with(transformers: str) -> Path:
    """The Python of an environment with a version of transformers."""
    folder = Path(os.environ.get("TMCTL_ENVIRONMENTS", ROOT / ".environments")) / f"gpu-{transformers}"
    python = folder / "bin" / "python"
    if not (folder / ".whole").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "-q", *PACKAGES, f"transformers=={transformers}"]
        subprocess.run(command, check=True)
        (folder / ".whole").touch()
    return python


@pytest.mark.parametrize("transformers", ["4.57.6", "5.24.0"])
def test_every_part_is_measured(tmp_path: Path, transformers: str) -> None:
    output = tmp_path / "gpu.json"
    command = [str(python_with(transformers)), "-m", "benchmarks.gpu", "--device", "cpu", "--tiny"]
    ended = subprocess.run([*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    results = json.loads(output.read_text())
    assert list(results) == ["device", "agreement", "sampling", "training", "checkpoint", "components"]
    assert results["device"]["transformers"] == transformers
    assert results["agreement"]["greedy_float32"] == 1
    assert results["agreement"]["greedy_bfloat16"] > 0.9
    assert 0 < results["agreement"]["bfloat16_kl_nats"] < 0.05
    assert results["training"]["step_seconds_2_rows"] > 0
