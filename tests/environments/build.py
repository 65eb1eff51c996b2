"""The environments and images of laion-clap and audiocraft, built by the project's files."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE = "TMCTL_BASE_IMAGE"
"""Names another image than the published Python for images to be built from, where that one cannot be had."""


def environment(name: str) -> Path:
    """The Python of an environment in TMCTL_ENVIRONMENTS, or in `.environments` of the checkout."""
    folder = Path(os.environ.get("TMCTL_ENVIRONMENTS", ROOT / ".environments")) / name
    python = folder / "bin" / "python"
    if not (folder / ".whole").exists():
        script = ROOT / "infra" / "environments" / "install"
        variables = {**os.environ, "PYTHON": sys.executable}
        subprocess.run([str(script), name, str(folder)], check=True, env=variables)
        (folder / ".whole").touch()
    return python


def docker(*words: str) -> subprocess.CompletedProcess[bytes]:
    """Run a docker command."""
    return subprocess.run(["docker", *words], capture_output=True, check=False)


@cache
def engine() -> bool:
    """Whether a Docker engine answers."""
    try:
        return docker("info", "--format", "{{.ServerVersion}}").returncode == 0
    except OSError:
        return False


@cache
def image(name: str) -> str:
    """The image of an environment, built now."""
    tag, base = f"tinymusician-{name}", os.environ.get(BASE)
    words = ["build", "--network", "host", "-f", str(ROOT / "infra" / "docker" / "environments.Dockerfile")]
    words += ["--build-arg", f"BASE={base}"] if base else []
    built = docker(*words, "--target", name, "-t", tag, str(ROOT))
    assert built.returncode == 0, built.stderr.decode()
    return tag


IN = ["environment", pytest.param("image", marks=pytest.mark.skipif(not engine(), reason="no Docker engine runs here"))]
"""Where a script of the package can run."""


def answered(where: str, name: str, script: str, folder: Path) -> None:
    """Let a script of this folder, run by the package's Python, fill a new `folder`; images have no network."""
    here, folder = Path(__file__).parent, folder.absolute()
    folder.mkdir(parents=True)
    if where == "environment":
        command = [str(environment(name)), str(here / script), str(folder)]
        ended = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    else:
        words = ["run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", "-e", "HOME=/tmp"]
        words += ["--user", f"{os.getuid()}:{os.getgid()}", "-v", f"{folder}:/work", "-v", f"{here}:/scripts:ro"]
        ended = docker(*words, image(name), f"/scripts/{script}", "/work")
    assert ended.returncode == 0, ended.stderr.decode()
