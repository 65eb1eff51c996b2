"""A real Ray of the tests' own, and how tests speak to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.cluster import QUIET
from tests.s3_server import free_port
from tinymusician.artifacts.store import Store
from tinymusician.training.metrics import read_metrics

BIN = Path(sys.executable).parent


class Ray:
    """A Ray of the tests' own: other ports than the user's, its files under a short temporary path."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, {**os.environ, **environment, "RAY_TRAIN_V2_ENABLED": "1", **QUIET}
        self.address = ""

    def start(self) -> None:
        gcs, dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{dashboard}"
        self.environment["TMCTL_CLUSTER"] = self.address
        command = [
            str(BIN / "ray"),
            "start",
            "--head",
            f"--port={gcs}",
            f"--dashboard-port={dashboard}",
            "--num-cpus=2",
        ]
        command += ["--include-dashboard=true", f"--temp-dir={self.folder}", "--disable-usage-stats"]
        command += [f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)

    def kill(self, *words: str) -> None:
        """SIGKILL to everything of this Ray whose command line has all `words`: head, agents, workers, jobs."""
        for pid in self.processes(*words):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def processes(self, *words: str) -> list[int]:
        """Processes of this Ray (by their environment or command line) whose command line has all `words`."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    known = (entry / "environ").read_bytes().decode(errors="replace") + line
                except OSError:
                    continue
                if (self.address in known or str(self.folder) in known) and all(w in line + known for w in words):
                    found.append(int(entry.name))
        return found


def tmctl(ray: Ray, store: Store, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**ray.environment, "TMCTL_STORE": store.url}
    return subprocess.run(
        [str(BIN / "tmctl"), *words], env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def told(ray: Ray, store: Store, *words: str) -> Any:
    ended = tmctl(ray, store, *words, "--json")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def settings(values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def losses(store: Store, run: str) -> dict[int, float]:
    """The loss at every step that a run wrote down."""
    return {row["step"]: row["loss"] for row in read_metrics(store, f"runs/{run}/metrics.jsonl") if "loss" in row}
