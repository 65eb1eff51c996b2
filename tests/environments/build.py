"""Environments of the field's own packages, built by the project's script where they are not there yet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(name: str) -> Path:
    """The Python of an environment in TMCTL_ENVIRONMENTS, or in `.environments` of the checkout."""
    folder = Path(os.environ.get("TMCTL_ENVIRONMENTS", ROOT / ".environments")) / name
    python = folder / "bin" / "python"
    if not (folder / ".whole").exists():
        script = ROOT / "infra" / "environments" / "install"
        told = {**os.environ, "PYTHON": sys.executable}
        subprocess.run([str(script), name, str(folder)], check=True, env=told)
        (folder / ".whole").touch()
    return python
