"""Connects to a Ray cluster: the given one, one that runs on this machine, or a new local one on loopback."""

from __future__ import annotations

import logging
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

from jobs.launch import local_ray
from jobs.launch.ray_environment import (
    CLUSTER_VARIABLE,
    configured_address,
    explicit_address,
    read_token,
    token_file,
    use_token,
    worker_environment,
)
from jobs.launch.trusted_clusters import check_trusted
from jobs.worker import mlflow
from serve.config import is_loopback
from tinymusician.artifacts.job_keys import JOB_KEYS_VARIABLE
from tinymusician.artifacts.keys import KEYS_VARIABLE
from tinymusician.artifacts.open import STORE_VARIABLE
from tinymusician.artifacts.secret_input import PASSPHRASE_VARIABLE, PIN_VARIABLE
from tinymusician.artifacts.store import Store
from tinymusician.errors import ClusterError
from tinymusician.json_types import JsonObject
from tinymusician.models.shape import WEIGHTS_VARIABLE

_UPLOADERS = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")
"""Loggers of Ray that tell of each package that a submission uploads."""
_MAX_NODES = 10_000
_VERSION_SECONDS = 10.0
_FORWARDED_VARIABLES = ("HF_HUB_OFFLINE", "HF_ENDPOINT")
_LOCAL_PATH_VARIABLES = (
    KEYS_VARIABLE,
    JOB_KEYS_VARIABLE,
    PASSPHRASE_VARIABLE,
    PIN_VARIABLE,
    WEIGHTS_VARIABLE,
    "HF_HOME",
)


def connect(address: str | None, start: bool = True) -> tuple[Any, str]:
    """A client of Ray's Jobs API, and its address.

    An explicit address wins over TMCTL_CLUSTER, and both over RAY_ADDRESS. Without any of them a local Ray is used, and
    started if none runs and `start` is true.

    Raises:
        ClusterError: no cluster responds there, or no local one could be started.
    """
    target = configured_address(address)
    if target is None:
        target = local_ray.find_or_start() if start else local_ray.find()
        if target is None:
            raise ClusterError("cluster: none is named, and no local Ray of yours is running")
    use_token()
    return _client(target), target


def connect_recorded(address: str, named: str | None = None) -> Any:
    """A client of the cluster that a run's record names; `named` is the command's.

    Raises:
        UntrustedClusterError: no user of this machine has named that cluster.
        ClusterError: none responds there.
    """
    check_trusted(address, named)
    client, _ = connect(address, start=False)
    return client


def check_ray_version(address: str) -> None:
    """Check that a cluster runs the Ray that this package is written for: patch versions may differ.

    Raises:
        ClusterError: it runs another one.
    """
    import requests

    token = read_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    needed, url = version("ray"), f"{address.rstrip('/')}/api/version"
    try:
        answer = requests.get(url, headers=headers, timeout=_VERSION_SECONDS)
        running = str(answer.json()["ray_version"])
    except (requests.RequestException, ValueError, LookupError) as error:
        raise ClusterError(f"cluster {address}: does not say which Ray it runs ({error})") from error
    if running.split(".")[:2] != needed.split(".")[:2]:
        raise ClusterError(
            f"cluster {address}: runs Ray {running}, and this package needs {needed}; install that on all nodes"
        )


def is_here(address: str) -> bool:
    """Whether the cluster at an address runs on this machine: a loopback address may also be the end of a tunnel."""
    if not is_loopback(urlparse(address).hostname or ""):
        return False
    head = _head(address)
    import ray  # after the token: Ray reads its mode of authentication when it is imported

    return head is None or head.ip in {"127.0.0.1", ray.util.get_node_ip_address()}


def head_id(address: str) -> str:
    """The id of the head node behind an address; empty if no cluster answers there."""
    head = _head(address)
    return head.id if head is not None else ""


class HeadNode(NamedTuple):
    """A cluster's head: its address in the cluster, and an id that no other head has."""

    ip: str
    id: str


def _head(address: str) -> HeadNode | None:
    """The head node of the cluster at an address; None if none answers, which the next connection reports."""
    use_token()
    from ray.util.state import list_nodes

    try:
        with explicit_address():
            nodes = list_nodes(address=address, limit=_MAX_NODES)
            alive = [node for node in nodes if node.is_head_node and node.state == "ALIVE"]
    except Exception:  # Ray raises errors of several kinds, by cause and version
        return None
    return HeadNode(alive[0].node_ip, alive[0].node_id) if alive else None


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    for name in _UPLOADERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with explicit_address():
            return JobSubmissionClient(address)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError or its own, by cause and version
        if "Authentication" in type(error).__name__:
            raise ClusterError(f"cluster {address}: {_token_problem()}") from error
        raise ClusterError(
            f"cluster {address}: no Ray dashboard answers there; check --cluster or {CLUSTER_VARIABLE}, "
            f"such as http://HEAD:8265"
        ) from error


def _token_problem() -> str:
    """What is wrong with the token that a cluster refused."""
    if not read_token():
        return "asks for a token; put it into RAY_AUTH_TOKEN or ~/.ray/auth_token"
    source = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else str(token_file())
    return f"refuses the token in {source}; it may be another cluster's"


def check_store(store: Store, address: str) -> None:
    """Check that a cluster can reach the store: by default it is a folder of the submitting machine.

    Raises:
        ClusterError: no store is named, and the cluster runs on other machines.
    """
    if os.environ.get(STORE_VARIABLE) or is_here(address):
        return
    raise ClusterError(
        f"store {store.url}: a folder of this machine, which the nodes of cluster {address} may not see; set "
        f"{STORE_VARIABLE} to the cluster's store, such as s3://BUCKET/PREFIX, or to this folder if all nodes mount it"
    )


def runtime_environment(store: Store, where: str) -> JsonObject:
    """The store's address, and this code if the cluster is another machine. Credentials are never sent.

    Nor are paths of this machine, which another one does not have.
    """
    variables = {STORE_VARIABLE: store.url, **worker_environment()}
    variables |= {name: os.environ[name] for name in _FORWARDED_VARIABLES if name in os.environ}
    environment: JsonObject = {"env_vars": variables}
    here = is_here(where)
    variables |= mlflow.shared_variables(here)
    if here:
        variables |= {name: os.environ[name] for name in _LOCAL_PATH_VARIABLES if name in os.environ}
    else:
        root = Path(__file__).parents[2]
        environment["py_modules"] = [str(root / name) for name in ("tinymusician", "serve", "jobs")]
    return environment


def upload_package(client: Any, environment: JsonObject) -> JsonObject:
    """The same environment with its code uploaded to the cluster: Ray Jobs uploads it, Ray Serve does not."""
    client._upload_py_modules_if_needed(environment)
    return environment
