"""Imports of each part of the package, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "ray", "deepspeed", "boto3", "scipy", "matplotlib")


def loaded_by(code: str) -> set[str]:
    """The top-level modules that are loaded after running `code`."""
    program = f"{code}\nimport sys; print(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(ended.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import tinymusician",
        "import tinymusician.codebooks",
        "import tinymusician.recipe; tinymusician.recipe.load_recipe('band')",
        "import tinymusician.artifacts.manifest, tinymusician.artifacts.runs, tinymusician.artifacts.open",
        "import jobs.cli.main",
        "import jobs.launch.validate as p, tinymusician.recipe as r; p.check('distill', r.load_recipe('band'), True)",
    ],
)
def test_light_modules_import_no_torch(code: str) -> None:
    assert not loaded_by(code) & set(HEAVY)


@pytest.mark.parametrize("job", ["precompute", "distill", "quantize", "pretrain"])
def test_drivers_load_no_torch(job: str) -> None:
    """A driver runs on the head, beside its actors, and only starts them."""
    code = f"from jobs.registry import JOBS; from importlib import import_module; import_module(JOBS[{job!r}])"
    assert not loaded_by(code) & {"torch", "transformers", "deepspeed", "matplotlib"}


def test_import_has_no_side_effects(tmp_path: Path) -> None:
    """It prints nothing, writes nothing where it is, starts no thread and draws no random number."""
    code = "import torch, threading; torch.manual_seed(0); before = torch.get_rng_state()\n"
    code += "import tinymusician.distill.task, tinymusician.house_band.pretrain, tinymusician.training.loop\n"
    code += "assert torch.equal(before, torch.get_rng_state()) and threading.active_count() == 1"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == ""
    assert list(tmp_path.iterdir()) == []
