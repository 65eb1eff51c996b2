"""Deploys the endpoint of a Ray cluster through Ray Serve's REST API. A cluster has one endpoint."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from jobs.launch import cluster
from serve.config import ServeConfig
from tinymusician.artifacts.store import Store
from tinymusician.errors import ClusterError
from tinymusician.json_types import JsonObject

NAME = "tinymusician"
_ERROR = re.compile(r"(ray\.exceptions\.\w+\(\w+\): |[\w.]+(Error|Refused|NotFound|Busy|Denied|Corrupt): )")
_ADDRESS = "For further information visit"
"""The address that pydantic appends to its errors."""
_POLL_SECONDS = 0.5
_TIMEOUT_SECONDS = 20.0
"""Seconds within which a cluster must report a status of a new application."""


class DeploymentStatus(NamedTuple):
    """`status` is Ray Serve's: DEPLOYING, RUNNING, UNHEALTHY, DEPLOY_FAILED …; ABSENT without an endpoint."""

    status: str
    message: str


class ServeDeployment:
    """The endpoint of one cluster."""

    def __init__(self, address: str | None, start: bool = True) -> None:
        """At the address of Ray's dashboard; a local Ray is started if none was named and `start` is true.

        Raises:
            ClusterError: no cluster responds.
        """
        self._jobs, self.where = cluster.connect(address, start)
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient  # Ray reads its token when it is imported

        self.is_here = cluster.is_here(self.where)
        self._client = ServeSubmissionClient(self.where)
        self._before: JsonObject | None = None

    def deploy(self, settings: ServeConfig, store: Store) -> None:
        """Start serving, or replace the endpoint without dropping a request; `wait` reports whether it succeeded.

        Raises:
            ClusterError: the cluster refuses, or serves at another address already.
        """
        http = {"host": settings.host, "port": settings.port}
        details = self._details()
        before = details.get("http_options") or {}
        if details["applications"] and {key: before.get(key) for key in http} != http:
            raise ClusterError(
                f"cluster {self.where}: serves at {before.get('host')}:{before.get('port')} already, and "
                f"{settings.host}:{settings.port} was asked for; end that with `tmctl serve --stop` first"
            )
        self._before = details["applications"].get(NAME, {}).get("deployed_app_config")
        self._put(
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": "serve.deployments:build",
                "runtime_env": cluster.upload_package(self._jobs, cluster.runtime_environment(store, self.where)),
                "args": settings.model_dump(mode="json", exclude_defaults=True),
            },
            http,
        )

    def state(self) -> DeploymentStatus:
        """The status."""
        application = self._applications().get(NAME)
        if application is None:
            return DeploymentStatus("ABSENT", "")
        messages = [*(one["message"] for one in application["deployments"].values()), application["message"]]
        return DeploymentStatus(application["status"], next((message for message in messages if message.strip()), ""))

    def wait(self, on_status: Callable[[DeploymentStatus], None] = lambda state: None) -> None:
        """Wait until every engine has warmed up; `on_progress` receives changes.

        If one cannot, the previous endpoint is restored.

        Raises:
            ClusterError: it cannot be served; the message says why.
        """
        seen, began = None, time.monotonic()
        while (state := self.state()).status != "RUNNING":
            if state != seen:
                on_status(state)
            absent = state.status == "ABSENT" and time.monotonic() - began > _TIMEOUT_SECONDS
            if absent or state.status in {"DEPLOY_FAILED", "UNHEALTHY"}:
                self._put(self._before)
                raise ClusterError(f"cluster {self.where}: {_error_reason(state.message)}")
            seen = state
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Stop the endpoint; other applications of this cluster keep running."""
        self._put(None)

    def _put(self, mine: JsonObject | None, http: JsonObject | None = None) -> None:
        """Replace the endpoint's application; Ray Serve needs the configuration of all applications at once."""
        others = [one.get("deployed_app_config") for name, one in self._applications().items() if name != NAME]
        applications = [one for one in (*others, mine) if one]
        if applications:
            config: JsonObject = {"applications": applications} | ({"http_options": http} if http else {})
            self._ask(self._client.deploy_applications, config)
        else:
            self._ask(self._client.delete_applications)

    def _applications(self) -> JsonObject:
        return dict(self._details()["applications"])

    def _details(self) -> JsonObject:
        return dict(self._ask(self._client.get_serve_details))

    def _ask(self, what: Callable[..., Any], *words: Any) -> Any:
        try:
            return what(*words)
        except Exception as error:  # Ray's client raises RuntimeError and requests' own kinds
            raise ClusterError(f"cluster {self.where}: {_error_reason(str(error))}") from error


def _error_reason(message: str) -> str:
    """A replica's error, extracted from a message with its traceback."""
    lines = [line for line in map(str.strip, message.splitlines()) if line and not line.startswith(_ADDRESS)]
    errors = [line for line in lines if _ERROR.match(line)]
    return _ERROR.sub("", errors[-1]) if errors else lines[-1] if lines else "refused, and did not say why"
