"""The endpoint in this process: the real ingress, API and engine replica on a real port, without Ray Serve."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import requests
import uvicorn

from serve.answer_replica import AnswerReplica, UploadedAudio
from serve.api import create_app
from serve.byte_range import ByteRange
from serve.config import read_config
from serve.encoders import Samples
from serve.engine_replica import EngineReplica
from serve.generation_task import EngineDeadError
from serve.ingress import Ingress
from serve.schemas import AudioAnswers, ClipRanking, ModelInfo, QuestionModelInfo, StreamMetadata
from tests.ray_cluster import wait_for
from tests.s3_server import free_port
from tinymusician.runtime.generator import GenerationRequest


class Engines:
    """One engine replica that can die: the next `lose` requests fail after `after` parts."""

    def __init__(self, replica: EngineReplica) -> None:
        self.replica, self.lose, self.after, self.begun, self.described = replica, 0, 0, 0, 0

    async def generate(
        self, generation: GenerationRequest, whole: bool, request: str
    ) -> AsyncGenerator[StreamMetadata | bytes, None]:
        self.begun += 1
        lost, given = self.lose > 0, 0
        self.lose -= lost
        async with contextlib.aclosing(self.replica.generate(generation, whole, request)) as parts:
            async for part in parts:
                if lost and given == self.after:
                    raise EngineDeadError("simulated")
                given += 1
                yield part

    async def about(self) -> ModelInfo:
        self.described += 1
        return await self.replica.about()

    def file(self, digest: str, path: str, part: ByteRange) -> AsyncGenerator[int | bytes, None]:
        return self.replica.file(digest, path, part)


class Answers:
    """One replica that answers questions and can die: the next `lose` questions fail."""

    def __init__(self, replica: AnswerReplica) -> None:
        self.replica, self.lose = replica, 0

    async def ask(
        self, audio: bytes, name: str, question: str | None, options: Sequence[str], request: str
    ) -> AudioAnswers:
        if self.lose:
            self.lose -= 1
            raise EngineDeadError("simulated")
        return await self.replica.ask(UploadedAudio(audio, name), question, options, request)

    async def about(self) -> QuestionModelInfo:
        if self.lose:
            raise EngineDeadError("simulated")
        return await self.replica.about()

    def file(self, digest: str, path: str, part: ByteRange) -> AsyncGenerator[int | bytes, None]:
        return self.replica.file(digest, path, part)

    async def rank(self, prompt: str, waves: Sequence[Samples], rate: int, request: str) -> ClipRanking:
        if self.lose:
            self.lose -= 1
            raise EngineDeadError("simulated")
        return await self.replica.rank(prompt, waves, rate, request)


@dataclass
class Endpoint:
    url: str
    engines: Engines
    replica: EngineReplica
    answers: Answers | None = None

    def generate(self, headers: dict[str, str] | None = None, **body: Any) -> requests.Response:
        """The response."""
        return requests.post(self.address, json=body, headers=headers, timeout=60)

    def opened(self, **body: Any) -> requests.Response:
        """A response whose body has not been read."""
        return requests.post(self.address, json={"stream": True, **body}, stream=True, timeout=60)

    @property
    def address(self) -> str:
        return f"{self.url}/v1/audio/generations"


@contextlib.contextmanager
def endpoint(**values: Any) -> Iterator[Endpoint]:
    settings = read_config({"questions_model": None, **values})
    replica = EngineReplica(settings)
    engines = Engines(replica)
    answer_replica = AnswerReplica(settings) if settings.questions_model else None
    answers = Answers(answer_replica) if answer_replica is not None else None
    port = free_port()
    app = create_app(Ingress(engines, settings, answers), settings.limits, allowed_origins=settings.allowed_origins)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        wait_for(lambda: server.started, 30)
        yield Endpoint(f"http://127.0.0.1:{port}", engines, replica, answers)
    finally:
        server.should_exit = True
        thread.join()
        replica.close()
        if answer_replica is not None:
            answer_replica.close()
