"""A real Ray of the tests' own, and how tests speak to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from jobs.launch.ray_environment import QUIET_ENVIRONMENT
from serve.config import PROXY_CALLBACK, PROXY_CALLBACK_VARIABLE
from tests.fork_server.start import fork_server
from tests.s3_server import free_port
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore, Store

BIN = Path(sys.executable).parent
QUICK = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_niceness": "0",
}
"""Ray Train looks after its workers ten times as often, no worker starts before there is work for it, and workers get
as much of the machine as the other tests' processes."""
ENDS_WITHOUT_HEAD = {"RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
"""So long a node looks for a lost head; by itself a minute."""


class Ray:
    """A Ray of the tests' own: other ports than the user's, its files under a short temporary path."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.address, self.gcs_port = folder, "", 0
        self.environment = {
            **os.environ,
            **environment,
            PROXY_CALLBACK_VARIABLE: PROXY_CALLBACK,
            "RAY_TRAIN_V2_ENABLED": "1",
            **QUIET_ENVIRONMENT,
            **QUICK,
            **ENDS_WITHOUT_HEAD,
        }
        self.environment.pop("OMP_NUM_THREADS", None)  # Ray sets it: the CPUs that a worker has

    def start(self) -> None:
        self.gcs_port, dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{dashboard}"
        self.environment["TMCTL_CLUSTER"] = self.address
        command = [
            str(BIN / "ray"),
            "start",
            "--head",
            f"--port={self.gcs_port}",
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
        pids = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    text = (entry / "environ").read_bytes().decode(errors="replace") + line
                except OSError:
                    continue
                if "fork_server/server.py" in line:  # ends with the process that it stands in for
                    continue
                if (self.address in text or str(self.folder) in text) and all(w in line + text for w in words):
                    pids.append(int(entry.name))
        return pids


AnyRay = TypeVar("AnyRay", bound=Ray)


@contextlib.contextmanager
def running_ray(environment: dict[str, str], kind: type[AnyRay]) -> Iterator[AnyRay]:
    """A Ray whose workers and jobs are forks of one server; nothing of it is left at the end."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray = kind(Path(folder), environment)
        with fork_server(ray.folder / "fork-server", ray.environment) as variables:
            ray.environment |= variables
            ray.start()
            try:
                yield ray
            finally:
                ray.kill()


def tmctl(ray: Ray, store: Store, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**ray.environment, "TMCTL_STORE": store.url}
    return subprocess.run(
        [str(BIN / "tmctl"), *words], env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def tmctl_json(ray: Ray, store: Store, *words: str) -> Any:
    ended = tmctl(ray, store, *words, "--json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


def settings(values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


LONG = ("training.steps=90", "training.checkpoint_every=10", "training.validate_every=30", "training.log_every=1")
"""A training that lasts long enough for something to happen to it."""


def losses(store: Store, run: str) -> dict[int, float]:
    """The loss at every step that a run wrote down."""
    return {row["step"]: row["loss"] for row in RunStore(store, run).metrics() if "loss" in row}


def shards(store: Store) -> dict[str, bytes]:
    """The notes of all shards of a store, which have the digests of their content."""
    return {entry.key: store.get(entry.key) for entry in store.list("shards/")}


def check_same_losses(actual: dict[int, float], expected: dict[int, float]) -> None:
    """At every step, within 1e-5."""
    assert sorted(actual) == sorted(expected)
    assert max(abs(actual[step] - expected[step]) for step in expected) <= 1e-5


def wait_for_checkpoint(store: Store, run: str, step: int = 10, stage: str = "distill") -> None:
    """Wait until a stage of a run has a checkpoint of that step, or of a later one."""
    from tinymusician.training.checkpoint import CheckpointManager

    checkpoints = CheckpointManager(store, RunStore(store, run).checkpoints_key(stage), "")
    wait_for(lambda: checkpoints.steps()[-1:] >= [step])


class UndisturbedRuns:
    """The losses of LONG runs that nothing happens to, by number of workers; each is run once for all test processes.

    Whoever asks first runs it on its own Ray; the others wait for it.
    """

    def __init__(self, ray: Ray, recipe: Path, folder: Path) -> None:
        self._ray, self._recipe, self._folder = ray, recipe, folder

    def losses(self, workers: int) -> dict[int, float]:
        """The loss at every step."""
        file = self._folder / f"undisturbed-{workers}.json"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                store = LocalStore(Path(tempfile.mkdtemp(dir=self._folder)))
                words = ("submit", "distill", str(self._recipe), *settings(LONG), "--workers", str(workers))
                assert tmctl_json(self._ray, store, *words, "--name", "calm")["state"] == "SUCCEEDED"
                file.write_text(json.dumps(losses(store, "calm")))
            return {int(step): loss for step, loss in json.loads(file.read_text()).items()}
