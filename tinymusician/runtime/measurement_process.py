"""Runs a module that measures a bundle in a process of its own, whose memory is that of the bundle alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tinymusician.errors import EngineError


def run_measurement(module: str, *words: str) -> str:
    """What `python -m MODULE WORDS` prints.

    Raises:
        EngineError: the process failed.
    """
    import tinymusician

    package = str(Path(str(tinymusician.__file__)).parents[1])  # the same code, wherever a job's copy of it lies
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", module, *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode != 0:
        raise EngineError(f"bundle: does not run ({' '.join(ended.stderr.split())[-300:]})")
    return ended.stdout
