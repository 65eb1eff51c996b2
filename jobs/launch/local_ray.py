"""The local Ray of this user: its address is remembered, and it starts on other ports if the usual ones are taken."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from pydantic import ValidationError

from jobs.launch.ray_environment import (
    ADDRESS_VARIABLES,
    AUTHENTICATION,
    QUIET_ENVIRONMENT,
    read_token,
    token_file,
    worker_environment,
)
from serve.config import PROXY_CALLBACK, PROXY_CALLBACK_VARIABLE
from tinymusician.artifacts.atomic import atomic_write
from tinymusician.config_model import Document
from tinymusician.errors import ClusterError
from tinymusician.user_folders import user_folder

if TYPE_CHECKING:
    import psutil

DASHBOARD_PORT = 8265
LOCAL = f"http://127.0.0.1:{DASHBOARD_PORT}"
"""The address of a local Ray, unless another one is remembered."""
_CONNECT_SECONDS, _STOP_SECONDS = 10.0, 10.0
_TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"  # noqa: S105  # a variable's name
_SHARED_MEMORY = "/dev/shm"  # noqa: S108  # Linux' name of it
_TOO_SLOW = "timed out during startup"
_SOCKET_PATH_BYTES = 107
_SESSION_PATH = "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""What Ray appends to its temporary folder, and binds sockets to."""


class LocalRay(Document):
    """A local Ray that tmctl started: the address of its dashboard, and the port of its control service."""

    address: str
    gcs_port: int


def find() -> str | None:
    """The address of this user's local Ray: the one that tmctl started, or one at the usual address; None without one.

    The one that tmctl started counts while its processes run, even if it is too busy to answer.
    """
    started = _read_state()
    if started and _processes(started.gcs_port):
        return started.address
    return LOCAL if accepts_token(LOCAL) else None


def find_or_start() -> str:
    """The address of this user's local Ray, which is started if none runs; two commands at once start one.

    Raises:
        ClusterError: it could not be started; the message says why.
    """
    if importlib.util.find_spec("ray") is None:  # importing ray would fix its authentication before the token exists
        raise ModuleNotFoundError("No module named 'ray'", name="ray")
    if address := find():
        return address
    from filelock import FileLock

    _check_machine()
    lock = _state_file().with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        return find() or start()


def accepts_token(address: str) -> bool:
    """Whether a Ray dashboard of this user answers at an address, and accepts the user's token, if there is one.

    The token is sent to no other user's program. Ray's client cannot be used for this: it caches whether there is a
    token, and before this machine's first local Ray there is none.
    """
    place, token = urlparse(address), read_token()
    if not _listens(place.port or 80):
        return False
    connection = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=_CONNECT_SECONDS)
    try:
        connection.request("GET", "/api/version", headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        return response.status == http.client.OK and "ray_version" in json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


def start() -> str:
    """Start a Ray head for this user: everything on loopback, behind a token in ~/.ray; returns its address.

    Raises:
        ClusterError: it could not be started; the message says why.
    """
    port = DASHBOARD_PORT if _is_free(DASHBOARD_PORT) else _free_port()
    ray = LocalRay(address=f"http://127.0.0.1:{port}", gcs_port=_free_port())
    print(
        f"No Ray runs here: starting a local one on {ray.address} (`tmctl local-ray stop` stops it).", file=sys.stderr
    )
    environment = {name: value for name, value in os.environ.items() if name not in ADDRESS_VARIABLES}
    environment |= {**dict([AUTHENTICATION]), **worker_environment(), **QUIET_ENVIRONMENT}
    environment |= {PROXY_CALLBACK_VARIABLE: PROXY_CALLBACK}  # in Serve's proxy
    _run([_ray(), "get-auth-token", "--generate"], environment)
    token_file().chmod(0o600)  # Ray writes it readable for all users
    command = [_ray(), "start", "--head", "--node-ip-address=127.0.0.1", f"--port={ray.gcs_port}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}", "--include-dashboard=true"]
    command += [f"--ray-client-server-port={_free_port()}", f"--dashboard-agent-listen-port={_free_port()}"]
    _start_head([*command, "--disable-usage-stats"], environment, ray.gcs_port)
    with atomic_write(_state_file()) as draft:
        draft.write_text(ray.model_dump_json())
    return ray.address


def _start_head(command: list[str], environment: dict[str, str], gcs_port: int) -> None:
    """Start a Ray head; twice if need be, since Ray gives its processes 30 s, which a busy machine can exceed."""
    for final in (False, True):
        try:
            return _run(command, environment)
        except ClusterError as error:
            _end(_processes(gcs_port))  # a start that takes too long leaves some behind
            if final or _TOO_SLOW not in str(error):
                raise
            print("Ray's start took more than 30 s; one more try.", file=sys.stderr)
    return None


def stop() -> str:
    """Stop the local Ray that tmctl started, and nothing else; returns its address.

    Raises:
        ClusterError: tmctl has started none, or it has ended.
    """
    started = _read_state()
    processes = [] if started is None else _processes(started.gcs_port)
    if started is None or not processes:
        raise ClusterError("local Ray: none that tmctl started is running")
    _end(processes)
    _state_file().unlink(missing_ok=True)
    return started.address


def _end(processes: list[psutil.Process]) -> None:
    """End processes, and kill those that go on."""
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # they end each other
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_STOP_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _listens(port: int) -> bool:
    """Whether a process of this user listens on a port of this machine."""
    import psutil

    mine = psutil.Process().username()
    for process in psutil.process_iter(["username"]):
        if process.info["username"] == mine:
            with contextlib.suppress(psutil.Error):  # it has ended, or hides its files
                for one in process.net_connections("tcp"):
                    if one.status == psutil.CONN_LISTEN and one.laddr.port == port:
                        return True
    return False


def _processes(gcs_port: int) -> list[psutil.Process]:
    """This user's processes that name a Ray's control service on their command line; the others end with them."""
    import psutil

    service, mine = re.compile(rf"--gcs[-_](address=.*:|server[-_]port=){gcs_port}"), psutil.Process().username()
    processes = psutil.process_iter(["cmdline", "username"])
    return [
        process
        for process in processes
        if process.info["username"] == mine and any(map(service.fullmatch, process.info["cmdline"] or ()))
    ]


def _check_machine() -> None:
    """Check what Ray needs of a machine.

    Raises:
        ClusterError: there is no home folder or shared memory that can be written, or the temporary folder's path is
            too long.
    """
    try:
        folder = token_file().parent
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:
        advice = f"set {_TOKEN_PATH} to a file" if _TOKEN_PATH in os.environ else "set HOME to a folder"
        raise ClusterError(
            f"a local Ray stores its token in a folder that cannot be written ({error}); {advice} that can"
        ) from error
    if sys.platform == "linux" and not os.access(_SHARED_MEMORY, os.W_OK):
        raise ClusterError(
            f"{_SHARED_MEMORY}: no such folder, or it cannot be written; Ray keeps its objects there; "
            f"mount a tmpfs on it (mount -t tmpfs tmpfs {_SHARED_MEMORY}; docker run --shm-size=2g)"
        )
    variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    temporary = os.environ.get(variable, "/tmp")  # noqa: S108  # Ray's default
    if len(os.fsencode(temporary + _SESSION_PATH)) > _SOCKET_PATH_BYTES:
        allowed = _SOCKET_PATH_BYTES - len(_SESSION_PATH)
        raise ClusterError(
            f"{variable} {temporary}: Ray binds sockets below it, whose paths are limited; at most {allowed} bytes "
            "are possible; set RAY_TMPDIR=/tmp"
        )


def _run(command: list[str], environment: dict[str, str]) -> None:
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, start_new_session=True
    )
    if ended.returncode != 0:
        lines = [line.strip() for line in (ended.stderr or ended.stdout).splitlines() if line.strip()]
        raise ClusterError(f"a local Ray could not be started: {' '.join(lines[-1:])}")


def _ray() -> str:
    return str(Path(sys.executable).with_name("ray"))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _state_file() -> Path:
    return user_folder("state") / "local-ray.json"


def _read_state() -> LocalRay | None:
    try:
        return LocalRay.model_validate_json(_state_file().read_bytes())
    except (OSError, ValidationError):
        return None
