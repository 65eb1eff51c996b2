"""Deploys the endpoint of a Ray cluster through Ray Serve's REST API. A cluster has one endpoint."""

from __future__ import annotations

import errno
import http.client
import re
import socket
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from jobs.launch import cluster, local_ray
from jobs.launch.ray_environment import explicit_address
from jobs.launch.shortage import ENDPOINT, current_shortages
from serve.config import DEPLOYMENT_ID, INGRESS, STOPPING, ServeConfig, reachable_url, read_config
from serve.download_proxy import RUNNING
from tinymusician.artifacts.store import Store
from tinymusician.errors import ClusterError
from tinymusician.json_types import JsonObject

NAME = "tinymusician"
_ERROR = re.compile(r"(ray\.exceptions\.\w+\(\w+\): |[\w.]+Error: )")
_ADDRESS = "For further information visit"
"""The address that pydantic appends to its errors."""
_POLL_SECONDS = 0.5
_PORT_SECONDS = 5.0
_TIMEOUT_SECONDS = 20.0
"""Seconds within which a cluster must report a status of a new application, and a new endpoint must answer."""
_SHORTAGE_SECONDS, _SHORTAGE_AGAIN_SECONDS = 3.0, 15.0
"""Seconds after which a deployment asks what it waits for, and between such questions."""


class DeploymentStatus(NamedTuple):
    """`status` is Ray Serve's: DEPLOYING, RUNNING, UNHEALTHY, DEPLOY_FAILED …; ABSENT without an endpoint.

    `id` differs between deployments; one that is restored has its own again.
    """

    status: str
    message: str
    id: str = ""


class ServeDeployment:
    """The endpoint of one cluster."""

    def __init__(self, address: str | None, start: bool = True) -> None:
        """At the address of Ray's dashboard; a local Ray is started if none was named and `start` is true.

        Raises:
            ClusterError: no cluster responds.
        """
        self._jobs, self.where = cluster.connect(address, start)
        self.is_local_ray = self.where == local_ray.find()
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient  # Ray reads its token when it is imported

        self.is_here = cluster.is_here(self.where)
        with explicit_address():
            self._client = ServeSubmissionClient(self.where)
        self._before: JsonObject | None = None
        self.place: JsonObject = {}
        """The address where Ray Serve was asked to listen by the last deployment."""

    def deploy(self, settings: ServeConfig, store: Store) -> None:
        """Start serving, or replace the endpoint without dropping a request; `wait` reports whether it succeeded.

        Raises:
            ClusterError: the cluster refuses, or serves at another address already.
        """
        self.place = place = {"host": settings.host, "port": settings.port}
        details = self._details()
        before = details.get("http_options") or {}
        if details["applications"] and {key: before.get(key) for key in place} != place:
            raise ClusterError(
                f"cluster {self.where}: an endpoint already runs at {before.get('host')}:{before.get('port')}, but "
                f"{settings.host}:{settings.port} was requested; stop it with `tmctl serve --stop` first"
            )
        if not details["applications"]:
            if before:  # Serve keeps its address until it is shut down
                self._call(self._client.delete_applications)
            if self.is_here:
                _check_port(settings.host, settings.port)
        self._before = details["applications"].get(NAME, {}).get("deployed_app_config")
        self._put(
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": "serve.deployments:build",
                "runtime_env": cluster.upload_package(self._jobs, cluster.runtime_environment(store, self.where)),
                "args": {**settings.model_dump(mode="json", exclude_defaults=True), DEPLOYMENT_ID: uuid.uuid4().hex},
            },
            place,
        )

    def model(self) -> str | None:
        """The model that the endpoint serves; None without an endpoint."""
        config = self._applications().get(NAME, {}).get("deployed_app_config")
        return str(config["args"]["model"]) if config else None

    def state(self) -> DeploymentStatus:
        """The status."""
        application = self._applications().get(NAME)
        if application is None:
            return DeploymentStatus("ABSENT", "")
        messages = [*(one["message"] for one in application["deployments"].values()), application["message"]]
        message = next((message for message in messages if message.strip()), "")
        arguments = (application.get("deployed_app_config") or {}).get("args") or {}
        return DeploymentStatus(application["status"], message, arguments.get(DEPLOYMENT_ID, ""))

    def wait(self, on_change: Callable[[str], None] = lambda text: None) -> DeploymentStatus:
        """Wait until every engine has warmed up; `on_change` receives changes, and what it waits for.

        If one cannot, the previous endpoint is restored.

        Raises:
            ClusterError: it cannot be served; the message says why.
        """
        seen, began, ask_at = None, time.monotonic(), time.monotonic() + _SHORTAGE_SECONDS
        while (state := self.state()).status != "RUNNING":
            if state != seen:
                on_change(_status_line(state))
            if time.monotonic() > ask_at:
                for shortage in current_shortages(self.where, ENDPOINT):
                    on_change(str(shortage))
                ask_at = time.monotonic() + _SHORTAGE_AGAIN_SECONDS
            absent = state.status == "ABSENT" and time.monotonic() - began > _TIMEOUT_SECONDS
            if absent or state.status in {"DEPLOY_FAILED", "UNHEALTHY"}:
                self.restore()
                raise ClusterError(f"cluster {self.where}: {_error_reason(state.message)}")
            seen = state
            time.sleep(_POLL_SECONDS)
        self._check_place()
        return state

    def _check_place(self) -> None:
        """Stop an endpoint that listens elsewhere: a Ray Serve that was started meanwhile keeps its own address.

        Raises:
            ClusterError: it does; without API keys, an address that others reach must not be served.
        """
        options = self._details().get("http_options") or {}
        if {key: options.get(key) for key in self.place} != self.place:
            self.restore()
            raise ClusterError(
                f"cluster {self.where}: Ray Serve listens at {options.get('host')}:{options.get('port')}, but "
                f"{self.place['host']}:{self.place['port']} was requested; the endpoint was stopped. Something else "
                "has started Ray Serve meanwhile: try again"
            )

    def restore(self) -> None:
        """Return to the endpoint before the last deployment; without one, stop this one."""
        self._put(self._before)

    def stop(self, on_change: Callable[[str], None] = lambda text: None) -> None:
        """Stop the endpoint when the requests that run are complete; other applications of this cluster keep running.

        New requests get 503 with Retry-After meanwhile. Requests are cut after the endpoint's own limit.
        """
        details = self._details()
        application = details["applications"].get(NAME, {})
        mine, deadline = application.get("deployed_app_config"), time.monotonic()
        if mine is not None and application["status"] == "RUNNING":
            limit = read_config(_without_id(mine["args"])).limits.request_timeout_s
            deadline += limit
            ingress = {"name": INGRESS, "user_config": {STOPPING: True}}
            self._put({**mine, "deployments": [ingress]})
            if self.is_here:
                options = details["http_options"]
                try:
                    _wait_until_idle(reachable_url(options["host"], options["port"]), limit, on_change)
                except KeyboardInterrupt:  # the requests that run are cut
                    deadline = time.monotonic()
        self._put(None, seconds=max(0.0, deadline - time.monotonic()))

    def _end_serve(self, seconds: float) -> None:
        """Shut Ray Serve down. Its proxies end at once, so its applications have `seconds` and a few to end before."""
        deadline = time.monotonic() + seconds + _TIMEOUT_SECONDS
        self._call(self._client.deploy_applications, {"applications": []})
        while self._applications() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self._call(self._client.delete_applications)

    def _put(self, mine: JsonObject | None, place: JsonObject | None = None, seconds: float = 0.0) -> None:
        """Replace the endpoint's application; Ray Serve needs the configuration of all applications at once."""
        others = [one.get("deployed_app_config") for name, one in self._applications().items() if name != NAME]
        applications = [one for one in (*others, mine) if one]
        if applications:
            config: JsonObject = {"applications": applications} | ({"http_options": place} if place else {})
            self._call(self._client.deploy_applications, config)
        else:
            self._end_serve(seconds)

    def _applications(self) -> JsonObject:
        return dict(self._details()["applications"])

    def _details(self) -> JsonObject:
        return dict(self._call(self._client.get_serve_details))

    def _call(self, what: Callable[..., Any], *words: Any) -> Any:
        try:
            return what(*words)
        except Exception as error:  # Ray's client raises RuntimeError and requests' own kinds
            raise ClusterError(f"cluster {self.where}: {_error_reason(str(error))}") from error


def bundle_at(url: str, expected: str | None) -> str:
    """The digest of the bundle that an endpoint serves, once it answers with the `expected` one, or with any.

    Raises:
        ClusterError: it does not answer in time, or serves something else: a replaced engine may answer for a moment.
    """
    deadline, problem = time.monotonic() + _TIMEOUT_SECONDS, ""
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310  # http
                bundle = response.headers["X-Bundle"]
            if bundle and expected in (None, bundle):
                return str(bundle)
            problem = f"answers with bundle {bundle[:12]}" if bundle else "another program answers"
        except (OSError, http.client.HTTPException) as error:
            problem = f"does not answer ({error})"
        time.sleep(_POLL_SECONDS)
    raise ClusterError(f"endpoint {url}: {problem}")


def sends_files_in_pieces(url: str) -> bool:
    """Whether Ray's proxy at an endpoint has `serve.download_proxy`, which bounds what slow downloads cost."""
    with urllib.request.urlopen(f"{url}/ready", timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310  # http
        return RUNNING.decode() in response.headers


def _wait_until_idle(url: str, seconds: float, on_change: Callable[[str], None]) -> None:
    """Wait until an endpoint that stops says that no request runs, or until its limit for one has passed."""
    deadline, is_reported = time.monotonic() + seconds, False
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=_TIMEOUT_SECONDS):  # noqa: S310  # http
                pass  # the new configuration has not arrived yet
        except urllib.error.HTTPError as error:
            if b"(idle)" in error.read() and error.headers.get(RUNNING.decode(), "0") == "0":
                return
            if not is_reported:
                on_change(f"waits for the requests that run, at most {seconds:g} s")
                is_reported = True
        except (OSError, http.client.HTTPException):
            return
        time.sleep(_POLL_SECONDS)


def _without_id(args: JsonObject) -> JsonObject:
    return {name: value for name, value in args.items() if name != DEPLOYMENT_ID}


def _check_port(host: str, port: int) -> None:
    """Check that nothing listens at an address; Serve releases its own a moment after it was shut down.

    Raises:
        ClusterError: something does, or this address cannot be used.
    """
    deadline = time.monotonic() + _PORT_SECONDS
    while True:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            socket.create_server((host, port), family=family).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ClusterError(f"--host {host} --port {port}: {error.strerror}") from error
            if time.monotonic() > deadline:
                raise ClusterError(f"--port {port}: another program uses it; choose another port") from error
            time.sleep(_POLL_SECONDS)
        else:
            return


def _status_line(state: DeploymentStatus) -> str:
    lines = state.message.strip().splitlines()
    return " ".join([state.status, *lines[-1:]])


def _error_reason(message: str) -> str:
    """A replica's error, extracted from a message with its traceback."""
    lines = [line for line in map(str.strip, message.splitlines()) if line and not line.startswith(_ADDRESS)]
    errors = [line for line in lines if _ERROR.match(line)]
    return _ERROR.sub("", errors[-1]) if errors else lines[-1] if lines else "refused, and did not say why"
