"""The endpoint's configuration: frozen, closed, and sent to the cluster as JSON."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from tinymusician.artifacts.reference import ROOT_KEY_VARIABLE, is_alias
from tinymusician.config_model import ConfigModel, Count, Positive
from tinymusician.errors import RequestError
from tinymusician.json_types import JsonObject
from tinymusician.runtime.audio_lm_bundle import DEFAULT_QUESTION_BUNDLE

_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")
DEPLOYMENT_ID = "deployment_id"
"""The argument of an application that differs between deployments: the same settings twice are two deployments."""
PROXY_CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
PROXY_CALLBACK = "serve.download_proxy.middlewares"
"""What Ray Serve's HTTP proxy loads, and the environment variable that tells it so when Ray starts."""
INGRESS, STOPPING = "ingress", "stopping"
"""The deployment that admits requests, and the key of its `user_config` with which it refuses new ones."""


class RequestLimits(ConfigModel):
    """Limits per request, and on concurrent requests."""

    seconds: float = Field(60.0, gt=0, le=600, description="maximum length, in seconds")
    prompt: int = Field(1000, ge=1, le=4000, description="maximum prompt length, in characters")
    body: int = Field(65536, ge=1024, description="maximum request body, in bytes")
    upload: int = Field(25_000_000, ge=1024, description="maximum upload of audio to ask about, in bytes")
    body_timeout_s: Positive = Field(30.0, description="seconds within which a request's body must have arrived")
    max_concurrent_requests: Count = Field(
        32, description="requests that run or wait; more are refused with status 429"
    )
    request_timeout_s: Positive = Field(120.0, description="seconds after which a request is aborted")


class ServeConfig(ConfigModel):
    """The configuration of one endpoint.

    `model` is NAME@ALIAS, a release that is pulled from `sources` and polled, or a folder or artifact, which is fixed.
    """

    model: str = Field(description="NAME@ALIAS, NAME, NAME@sha256:DIGEST or a folder")
    questions_model: str | None = Field(
        DEFAULT_QUESTION_BUNDLE,
        description="a bundle that answers questions about audio, named like `model`; null: no questions",
    )
    sources: tuple[str, ...] = Field(
        (), description="addresses that releases are pulled from; the store's own if empty"
    )
    root_key: str | None = Field(
        None, description="the publisher's public root key, 64 hexadecimal digits; TMCTL_ROOT_KEY if not given"
    )
    root_document: str | None = Field(
        None, description="the publisher's root document itself, where several root keys must sign; --root reads a file"
    )
    poll_interval_s: Positive = Field(15.0, description="seconds between polls of the alias")
    host: str = Field("127.0.0.1", description="network interface")
    port: int = Field(8000, ge=1, le=65535, description="port")
    api_keys: Path | None = Field(None, description="API key file; required on interfaces other than loopback")
    api_key_usage: Path | None = Field(
        None, description="file of the date of each key's last use; by default beside `api_keys`"
    )
    allowed_origins: tuple[str, ...] = Field(
        (), description="origins, such as https://shop.example, whose pages may use the endpoint (CORS)"
    )
    replicas: Count = Field(1, description="minimum number of engine replicas")
    max_replicas: Count = Field(1, description="maximum number of engine replicas; scaled with the load")
    threads: int = Field(0, ge=0, description="CPU threads per engine; 0 is as many as its process may use")
    num_cpus: float | None = Field(
        None, ge=0, description="CPUs that each engine reserves in the cluster; by default its threads, or one"
    )
    max_batch_rows: int = Field(16, ge=2, description="rows of an engine's batch; a guided request takes two")
    limits: RequestLimits = RequestLimits()

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin: SCHEME://HOST[:PORT] in lower case, without a path")
        return origins

    @property
    def is_alias(self) -> bool:
        """Whether the model is an alias, which is polled."""
        return is_alias(self.model)


def read_config(values: JsonObject) -> ServeConfig:
    """Validate plain values.

    Raises:
        RequestError: a value is not allowed, or other machines could reach the endpoint without a key.
    """
    try:
        config = ServeConfig.model_validate({"root_key": os.environ.get(ROOT_KEY_VARIABLE) or None} | values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            raise RequestError(f"serve {where}: no such setting; `tmctl serve REF --dry-run` lists all") from None
        raise RequestError(f"serve {where}: {problem['msg']} (given: {problem['input']!r})") from None
    if config.api_keys is None and not is_loopback(config.host):
        raise RequestError(
            f"serve host {config.host!r}: other machines reach it, so it needs API keys; make some with "
            f"`tmctl api-keys create NAME` and give their file with --api-keys, or serve on 127.0.0.1"
        )
    if config.max_replicas < config.replicas:
        raise RequestError(
            f"serve max_replicas {config.max_replicas}: at least the {config.replicas} of `replicas` are needed"
        )
    return config


def reachable_url(host: str, port: int) -> str:
    """The address at which this machine reaches a server that listens at `host`: all interfaces include loopback."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"http://{address}:{port}" if address.version == 4 else f"http://[{address}]:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an interface."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
