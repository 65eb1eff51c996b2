"""The Ray Serve application: one front, and engines that come and go with the load."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from serve.api import create_app
from serve.config import ServeConfig, read_settings
from serve.engine_replica import EngineReplica
from serve.generation_task import EngineDeadError
from serve.ingress import Ingress
from serve.schemas import ModelInfo, StreamMetadata
from tinymusician.errors import TinyMusicianError
from tinymusician.runtime.generator import GenerationRequest

_LOST = (ObjectLostError, RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)
_HEAD = {"node:__internal_head__": 0.001}
"""Ray's name for its head's node: the front lives where Serve's own proxy and controller live, and dies with nobody
else."""
_LOOK_SECONDS = 5.0
"""How often Serve asks an engine whether it lives, and how long it waits: three answers that do not come in time, and
what it played on a machine that went dark begins anew elsewhere."""
_UNBOUNDED = 10_000
"""Requests that Serve itself lets through to the front, which has its own bound and its own answer."""


class ServeEngineClient:
    """The engines of this application; Serve chooses the least busy one."""

    def __init__(self, musicians: DeploymentHandle) -> None:
        self._play = musicians.options(method_name="play", stream=True)
        self._file = musicians.options(method_name="file", stream=True)
        self._about = musicians.options(method_name="about")

    async def play(
        self, generation: GenerationRequest, whole: bool, request: str
    ) -> AsyncGenerator[StreamMetadata | bytes, None]:
        async with aclosing(_passed_on(self._play.remote(generation, whole, request))) as parts:
            async for part in parts:
                yield part

    async def about(self) -> ModelInfo:
        try:
            model: ModelInfo = await self._about.remote()
        except _LOST as error:
            raise EngineDeadError(type(error).__name__) from error
        return model

    async def file(self, digest: str, path: str) -> AsyncGenerator[int | bytes, None]:
        async with aclosing(_passed_on(self._file.remote(digest, path))) as parts:
            async for part in parts:
                yield part


async def _passed_on(parts: DeploymentResponseGenerator[Any]) -> AsyncGenerator[Any, None]:
    """What an engine gives, and its errors as they were raised there; whoever closes this makes it stop."""
    try:
        async for part in parts:
            yield part
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, TinyMusicianError) else error from None
    except _LOST as error:
        raise EngineDeadError(type(error).__name__) from error
    finally:
        parts.cancel()


@serve.ingress()
class IngressDeployment:
    """The front in Ray Serve. There is one, so that places and rates are counted in one place."""

    def __init__(self, musicians: DeploymentHandle, settings: ServeConfig) -> None:
        self._front, self._limits = Ingress(ServeEngineClient(musicians), settings), settings.limits

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._front, self._limits, marked=True)


def build(args: dict[str, Any]) -> serve.Application:
    """The application out of plain settings; what `import_path` of a Serve config names.

    Raises:
        RequestError: a setting is not allowed.
    """
    settings = read_settings(args)
    scaling = {
        "min_replicas": settings.replicas,
        "max_replicas": settings.max_replicas,
        "target_ongoing_requests": settings.max_batch_rows / 2,
        "upscale_delay_s": 5,
        "downscale_delay_s": 120,
    }
    musicians = serve.deployment(
        EngineReplica,
        name="musician",
        ray_actor_options={"num_cpus": settings.threads or 1},
        autoscaling_config=scaling,
        max_ongoing_requests=settings.max_batch_rows,
        graceful_shutdown_timeout_s=settings.limits.request_timeout_s,
        health_check_period_s=_LOOK_SECONDS,
        health_check_timeout_s=_LOOK_SECONDS,
    ).bind(settings)
    front = serve.deployment(
        IngressDeployment,
        name="front",
        ray_actor_options={"num_cpus": 0, "resources": _HEAD},
        num_replicas=1,
        max_ongoing_requests=_UNBOUNDED,
        graceful_shutdown_timeout_s=settings.limits.request_timeout_s,
    )
    return front.bind(musicians, settings)
