"""The first local Ray of a machine: separate network, processes and home folder stand in for the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ALONE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "sh", "-c"]
"""Whatever runs in there ends with it."""


def test_first_ray_on_a_machine_starts(tmp_path: Path) -> None:
    """Its token is made before anything asks for it: one command is enough."""
    prepared = f"ip link set lo up && cd {Path(__file__).parents[2]} && export HOME={tmp_path} && "
    if subprocess.run([*ALONE, prepared + "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no namespaces here: needs Linux, root and iproute2")
    connect = (
        "from jobs.launch.cluster import connect; client, address = connect(None); print(address, client.list_jobs())"
    )
    command = f"{prepared} {sys.executable} -c '{connect}'"
    ended = subprocess.run([*ALONE, command], capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "http://127.0.0.1:8265 []", ended.stderr
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0, "other users must not read the token"
