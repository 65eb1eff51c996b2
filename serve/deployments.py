"""The Ray Serve application: one ingress, and engine replicas that scale with the load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import FastAPI
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from serve.answer_replica import AnswerReplica, UploadedAudio
from serve.api import create_app
from serve.byte_range import ByteRange
from serve.config import DEPLOYMENT_ID, INGRESS, STOPPING, ServeConfig, read_config
from serve.encoders import Samples
from serve.engine_replica import EngineReplica
from serve.gauge_refresh import GaugeRefresh
from serve.generation_task import EngineDeadError
from serve.ingress import Ingress
from serve.schemas import AudioAnswers, ClipRanking, ModelInfo, QuestionModelInfo, StreamMetadata
from tinymusician.errors import TinyMusicianError
from tinymusician.json_types import JsonObject
from tinymusician.runtime.generator import GenerationRequest

_REPLICA_ERRORS = (ObjectLostError, RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)
_Result = TypeVar("_Result")
_HEAD = {"node:__internal_head__": 0.001}
"""Ray's resource of the head node. The ingress runs beside Serve's proxy and controller, so no other node's failure
ends it."""
_HEALTH_CHECK_SECONDS = 5.0
"""Period and timeout of health checks. After three missed checks Serve replaces a replica, and its requests are
retried."""
_UNBOUNDED = 10_000
"""Requests that Serve passes to the ingress, which refuses requests over its own limit with status 429."""


class ServeEngineClient:
    """The engine replicas of this application; Serve routes to the least loaded one."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._play = replicas.options(method_name="generate", stream=True)
        self._file = replicas.options(method_name="file", stream=True)
        self._about = replicas.options(method_name="about")

    async def generate(
        self, request: GenerationRequest, buffered: bool, request_id: str
    ) -> AsyncGenerator[StreamMetadata | bytes, None]:
        async with aclosing(_translate_errors(self._play.remote(request, buffered, request_id))) as parts:
            async for part in parts:
                yield part

    async def about(self) -> ModelInfo:
        return await _result(self._about.remote())

    async def file(self, digest: str, path: str, part: ByteRange) -> AsyncGenerator[int | bytes, None]:
        async with aclosing(_translate_errors(self._file.remote(digest, path, part))) as parts:
            async for chunk in parts:
                yield chunk


class ServeAnswerClient:
    """The replicas of this application that answer questions."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._ask = replicas.options(method_name="ask")
        self._rank = replicas.options(method_name="rank")
        self._about = replicas.options(method_name="about")
        self._file = replicas.options(method_name="file", stream=True)

    async def ask(
        self, audio: bytes, name: str, question: str | None, options: Sequence[str], request_id: str
    ) -> AudioAnswers:
        return await _result(self._ask.remote(UploadedAudio(audio, name), question, tuple(options), request_id))

    async def rank(self, prompt: str, waves: Sequence[Samples], rate: int, request_id: str) -> ClipRanking:
        return await _result(self._rank.remote(prompt, list(waves), rate, request_id))

    async def about(self) -> QuestionModelInfo:
        return await _result(self._about.remote())

    async def file(self, digest: str, path: str, part: ByteRange) -> AsyncGenerator[int | bytes, None]:
        async with aclosing(_translate_errors(self._file.remote(digest, path, part))) as parts:
            async for chunk in parts:
                yield chunk


async def _result(response: DeploymentResponse[_Result]) -> _Result:
    """What a replica returns; what it raised is raised instead of Ray's errors. A cancellation cancels the call."""
    try:
        result: _Result = await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, TinyMusicianError) else error from None
    except _REPLICA_ERRORS as error:
        raise EngineDeadError(type(error).__name__) from error
    return result


async def _translate_errors(parts: DeploymentResponseGenerator[Any]) -> AsyncGenerator[Any, None]:
    """Yield what a replica yields, and raise what it raised instead of Ray's errors; closing this cancels the call."""
    try:
        async for part in parts:
            yield part
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, TinyMusicianError) else error from None
    except _REPLICA_ERRORS as error:
        raise EngineDeadError(type(error).__name__) from error
    finally:
        parts.cancel()


@serve.ingress()
class IngressDeployment:
    """The ingress as a deployment. It has one replica, so limits and rates are counted once."""

    def __init__(
        self, replicas: DeploymentHandle, config: ServeConfig, answers: DeploymentHandle | None = None
    ) -> None:
        client = None if answers is None else ServeAnswerClient(answers)
        self._ingress, self._config = Ingress(ServeEngineClient(replicas), config, client), config
        GaugeRefresh(self._ingress.update_gauges)

    def reconfigure(self, user_config: JsonObject | None) -> None:
        """Serve calls this with the `user_config` of the application's config: `{"stopping": true}` before it ends."""
        if (user_config or {}).get(STOPPING):
            self._ingress.stop_admitting()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._ingress, self._config.limits, True, self._config.allowed_origins)


def build(args: JsonObject) -> serve.Application:
    """The application of a configuration; Serve config files name this function as `import_path`.

    Raises:
        RequestError: a value is not allowed.
    """
    config = read_config({name: value for name, value in args.items() if name != DEPLOYMENT_ID})
    scaling = {
        "min_replicas": config.replicas,
        "max_replicas": config.max_replicas,
        "target_ongoing_requests": config.max_batch_rows / 2,
        "upscale_delay_s": 5,
        "downscale_delay_s": 120,
    }
    engines = serve.deployment(
        EngineReplica,
        name="engine",
        ray_actor_options={"num_cpus": (config.threads or 1) if config.num_cpus is None else config.num_cpus},
        autoscaling_config=scaling,
        max_ongoing_requests=config.max_batch_rows,
        graceful_shutdown_timeout_s=config.limits.request_timeout_s,
        health_check_period_s=_HEALTH_CHECK_SECONDS,
        health_check_timeout_s=_HEALTH_CHECK_SECONDS,
    ).bind(config)
    ingress = serve.deployment(
        IngressDeployment,
        name=INGRESS,
        ray_actor_options={"num_cpus": 0, "resources": _HEAD},
        num_replicas=1,
        max_ongoing_requests=_UNBOUNDED,
        graceful_shutdown_timeout_s=config.limits.request_timeout_s,
    )
    answers = None if config.questions_model is None else _answers(config)
    return ingress.bind(engines, config, answers)


def _answers(config: ServeConfig) -> serve.Application:
    return serve.deployment(
        AnswerReplica,
        name="answers",
        ray_actor_options={"num_cpus": 0},  # a question takes a fraction of a second of CPU time
        num_replicas=1,
        max_ongoing_requests=_UNBOUNDED,
        graceful_shutdown_timeout_s=config.limits.request_timeout_s,
        health_check_period_s=_HEALTH_CHECK_SECONDS,
        health_check_timeout_s=_HEALTH_CHECK_SECONDS,
    ).bind(config)
