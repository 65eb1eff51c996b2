"""What an endpoint is told when it starts. Closed and frozen; travels to the cluster as JSON."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinymusician.errors import RequestError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class ConfigModel(BaseModel):
    """A frozen, closed piece of the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RequestLimits(ConfigModel):
    """What one request may ask for, and how many there may be."""

    seconds: float = Field(60.0, gt=0, le=600, description="the longest music, in seconds")
    prompt: int = Field(1000, ge=1, le=4000, description="the longest prompt, in characters")
    body: int = Field(65536, ge=1024, description="the largest request body, in bytes")
    max_concurrent_requests: Count = Field(32, description="requests that play or wait; more are refused with 429")
    request_timeout_s: Positive = Field(120.0, description="seconds until a request must be answered whole")


class ServeConfig(ConfigModel):
    """One endpoint.

    `model` is NAME@ALIAS, a release that is pulled from `sources` and followed, or a folder or artifact, which stays.
    """

    model: str = Field(description="NAME@ALIAS, NAME, NAME@sha256:DIGEST or a folder")
    sources: tuple[str, ...] = Field((), description="where releases come from; the store's own address if empty")
    root_key: str | None = Field(None, description="the publisher's public root key, 64 hexadecimal digits")
    poll_interval_s: Positive = Field(15.0, description="seconds between two looks at the alias")
    host: str = Field("127.0.0.1", description="the interface that the endpoint answers on")
    port: int = Field(8000, ge=1, le=65535, description="its port")
    api_keys: Path | None = Field(None, description="the file of API keys; needed on any interface but loopback")
    replicas: Count = Field(1, description="engines at least")
    max_replicas: Count = Field(1, description="engines at most; they come and go with the load")
    threads: int = Field(0, ge=0, description="CPU threads an engine; 0 takes all cores of its node")
    max_batch_rows: int = Field(16, ge=2, description="rows of an engine's batch; a guided request needs two")
    limits: RequestLimits = RequestLimits()

    @property
    def follows(self) -> bool:
        """Whether the model is an alias, which may move."""
        return "@" in self.model and "@sha256:" not in self.model


def read_settings(values: dict[str, Any]) -> ServeConfig:
    """Settings out of plain values.

    Raises:
        RequestError: a value is not allowed, or the endpoint would be open to other machines without keys.
    """
    try:
        settings = ServeConfig.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise RequestError(f"serve {where}: {problem['msg']} (given: {problem['input']!r})") from None
    if settings.api_keys is None and not is_loopback(settings.host):
        raise RequestError(
            f"serve host {settings.host!r}: others reach it, so it needs API keys; make some with "
            f"`tmctl api-keys create NAME` and give their file with --api-keys, or serve on 127.0.0.1"
        )
    if settings.max_replicas < settings.replicas:
        raise RequestError(
            f"serve max_replicas {settings.max_replicas}: at least the {settings.replicas} of `replicas` are needed"
        )
    return settings


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an interface."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
