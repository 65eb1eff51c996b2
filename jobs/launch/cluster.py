"""Connects to a Ray cluster: the given one, one that runs on this machine, or a new local one on loopback."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from tinymusician.artifacts.keys import KEYS_VARIABLE
from tinymusician.artifacts.open import STORE_VARIABLE
from tinymusician.artifacts.store import Store
from tinymusician.errors import ClusterError
from tinymusician.json_types import JsonObject
from tinymusician.models.shape import WEIGHTS_VARIABLE

CLUSTER_VARIABLE = "TMCTL_CLUSTER"
_FORWARDED_VARIABLES = ("HF_HUB_OFFLINE", "HF_HOME", "HF_ENDPOINT", WEIGHTS_VARIABLE)
LOCAL = "http://127.0.0.1:8265"
TOKEN = Path.home() / ".ray" / "auth_token"
AUTHENTICATION = ("RAY_AUTH_MODE", "token")
"""Ray's authentication: some of its ports listen on every interface, even of a head on loopback, so all need a token.
"""

QUIET_ENVIRONMENT = {"REPORTER_UPDATE_INTERVAL_MS": "30000"}
"""Ray's dashboard scans every process of the machine; every 5 s takes 8 % of a laptop's core."""


def connect(address: str | None, start: bool = True) -> tuple[Any, str]:
    """A client of Ray's Jobs API, and its address.

    Without an address (or TMCTL_CLUSTER) a local Ray is used, and started if none runs and `start` is true.

    Raises:
        ClusterError: no cluster responds there, or no local one could be started.
    """
    target = address or os.environ.get(CLUSTER_VARIABLE)
    if target and urlparse(target).scheme not in {"http", "https"}:
        raise ClusterError(f"cluster {target!r}: the address of Ray's dashboard is needed, such as http://HEAD:8265")
    if not target and start and not _responds(LOCAL):
        _start_local()
    _use_token()
    return _client(target or LOCAL), target or LOCAL


def is_here(address: str) -> bool:
    """Whether the cluster at an address runs on this machine: a loopback address may also be the end of a tunnel."""
    if urlparse(address).hostname not in {"127.0.0.1", "localhost"}:
        return False
    _use_token()
    import ray
    from ray.util.state import list_nodes

    try:
        heads = {node.node_ip for node in list_nodes(address=address) if node.is_head_node}
    except Exception:  # no cluster there; the next connection reports it
        return True
    return not heads or bool(heads & {"127.0.0.1", ray.util.get_node_ip_address()})


def _responds(address: str) -> bool:
    """Whether anything listens at an address.

    Ray's client cannot be used for this: it caches whether there is a token, and before this machine's first local Ray
    there is none.
    """
    place = urlparse(address)
    try:
        socket.create_connection((place.hostname, place.port or 80), timeout=2).close()
    except OSError:
        return False
    return True


def _use_token() -> None:
    """Make Ray's client send its token if there is one; a cluster without authentication ignores it."""
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ or TOKEN.exists():
        os.environ.setdefault(*AUTHENTICATION)


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError or its own, by cause and version
        if "Authentication" in type(error).__name__:
            raise ClusterError(f"cluster {address}: asks for a token; put it into RAY_AUTH_TOKEN or {TOKEN}") from error
        raise ClusterError(
            f"cluster {address}: no Ray dashboard answers there; check --cluster or {CLUSTER_VARIABLE}, "
            f"such as http://HEAD:8265"
        ) from error


def _start_local() -> None:
    """Start a Ray head for this user: its dashboard on loopback, everything behind a token in ~/.ray."""
    if importlib.util.find_spec("ray") is None:  # importing ray would fix its authentication before the token exists
        raise ModuleNotFoundError("No module named 'ray'", name="ray")
    print(f"No Ray runs here: starting a local one on {LOCAL} (end it with `ray stop`).", file=sys.stderr)
    ray = Path(sys.executable).with_name("ray")
    subprocess.run([str(ray), "get-auth-token", "--generate"], capture_output=True, check=True)
    TOKEN.chmod(0o600)  # Ray writes it readable for all users
    command = [str(ray), "start", "--head", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
    command += ["--dashboard-port=8265", "--include-dashboard=true", "--disable-usage-stats"]
    environment = {**os.environ, **dict([AUTHENTICATION]), **worker_environment(), **QUIET_ENVIRONMENT}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, start_new_session=True
    )
    if ended.returncode != 0:
        last = (ended.stderr or ended.stdout).strip().splitlines()[-1:]
        raise ClusterError(f"a local Ray could not be started: {' '.join(last)}; `ray stop` clears away an old one")


def runtime_environment(store: Store, where: str) -> JsonObject:
    """The store's address, and this code if the cluster is another machine. Credentials are never sent.

    Nor is the path of the signing keys, which differs there.
    """
    variables = {STORE_VARIABLE: store.url, **worker_environment()}
    variables |= {name: os.environ[name] for name in _FORWARDED_VARIABLES if name in os.environ}
    environment: JsonObject = {"env_vars": variables}
    if is_here(where):
        variables |= {name: os.environ[name] for name in (KEYS_VARIABLE,) if name in os.environ}
    else:
        root = Path(__file__).parents[2]
        environment["py_modules"] = [str(root / name) for name in ("tinymusician", "serve", "jobs")]
    return environment


def upload_package(client: Any, environment: JsonObject) -> JsonObject:
    """The same environment with its code uploaded to the cluster: Ray Jobs uploads it, Ray Serve does not."""
    client._upload_py_modules_if_needed(environment)
    return environment


def worker_environment() -> dict[str, str]:
    """The environment of Ray's processes: Ray Train's second version, no warning about its metrics port.

    Without the rest, Ray Train would print everything twice, and lines would be coloured and merged.
    """
    return {
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_COLOR_PREFIX": "0",
        "RAY_DEDUP_LOGS": "0",
    }
