"""Generating audio opens no socket and writes nothing but its output: telemetry of all libraries is off."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.no_sockets import SOCKET
from tinymusician import TELEMETRY

RUNNER = Path(__file__).parents[1] / "no_sockets.py"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in SOCKET, reason="needs Linux's seccomp"
)


def run_without_sockets(home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in TELEMETRY}
    environment |= {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("XDG_CACHE_HOME", None)
    return subprocess.run(
        [sys.executable, str(RUNNER), *command], env=environment, cwd=home, capture_output=True, text=True, check=False
    )


def test_a_socket_would_be_noticed(tmp_path: Path) -> None:
    ended = run_without_sockets(tmp_path, sys.executable, "-c", "import socket; socket.socket()")
    assert ended.returncode == -signal.SIGSYS


def test_generate_opens_no_socket_and_writes_one_file(tmp_path: Path, bundle: Path) -> None:
    tmctl = str(Path(sys.executable).with_name("tmctl"))
    ended = run_without_sockets(
        tmp_path, tmctl, "generate", "a jig", "--model", str(bundle), "--seconds", "1", "-o", "jig.wav"
    )
    assert ended.returncode == 0, ended.stderr
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [Path("jig.wav")]
