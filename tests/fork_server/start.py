"""Starting and ending a fork server, and the variables by which processes find it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent


@contextlib.contextmanager
def fork_server(address: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """A server on a socket; yields what to add to the environment of the processes that it forks for.

    Its forks have one thread for each of their parallel regions, and no GPU.
    """
    variables = {"FORK_SERVER": str(address), "PYTHONPATH": str(FOLDER)}
    own = {
        **environment,
        "FORK_SERVER": str(address),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, str(FOLDER / "server.py"), str(address)]
    server = subprocess.Popen(command, env=own, stdin=subprocess.PIPE, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not address.exists():
            assert server.poll() is None, "the fork server does not start"
            assert time.monotonic() < deadline, "the fork server does not answer"
            time.sleep(0.05)
        yield variables
    finally:
        assert server.stdin is not None
        server.stdin.close()
        server.wait(30)
