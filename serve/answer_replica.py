"""Answers questions about audio behind the endpoint, with a bundle of its own; follows the bundle's alias."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from serve import log
from serve.bundle_files import ServedFiles, bundle_file, bundle_info
from serve.bundle_follower import BundleFollower
from serve.bundle_source import ResolvedBundle, questions_config
from serve.byte_range import ByteRange
from serve.config import ServeConfig
from serve.gauge_refresh import GaugeRefresh
from serve.log import log_event
from serve.metrics import expiry_gauge
from serve.schemas import AnswerOption, AudioAnswer, AudioAnswers, ClipRanking, QuestionModelInfo
from tinymusician.errors import DataError, RequestError, contain_panics
from tinymusician.runtime.audio_reader import SUFFIXES, LoadedClip, read_clip
from tinymusician.runtime.best_of import rank
from tinymusician.runtime.prompt_claims import rankable_claims
from tinymusician.runtime.prompts import MAX_SECONDS
from tinymusician.runtime.question_answerer import Answer, Check, QuestionAnswerer, Samples
from tinymusician.runtime.question_checks import check_length, check_question

_MAX_DECODED = 100_000_000
"""Samples of all channels that one upload may decode: silence compresses well, and decoding takes time."""
_Result = TypeVar("_Result")
_CONCURRENT = 2
"""Questions that one replica answers at the same time; ONNX Runtime uses all cores for each."""


class UploadedAudio(NamedTuple):
    """The bytes of an uploaded file, and its name, whose suffix says its format."""

    content: bytes
    name: str


class _LoadedAnswerer:
    """A bundle that is loaded; questions that use it keep it alive."""

    def __init__(self, source: ResolvedBundle, answerer: QuestionAnswerer) -> None:
        self.source, self.answerer, self.digest = source, answerer, source.digest
        self.files = ServedFiles(source.folder, self.digest, answerer.manifest.files)

    def close(self) -> None:
        """Does nothing: the bundle is freed with its last request."""


class AnswerReplica:
    """One replica that answers questions."""

    def __init__(self, config: ServeConfig) -> None:
        """Load the bundle.

        Raises:
            TinyMusicianError: no bundle can be loaded.
        """
        self._config = questions_config(config)
        self._follower = BundleFollower(self._config, self._load)
        self._gauges = GaugeRefresh(partial(self._follower.update_expiry, expiry_gauge()))
        self._slots = asyncio.Semaphore(_CONCURRENT)

    def close(self) -> None:
        """Stop polling the alias."""
        self._gauges.close()
        self._follower.close()

    async def check_health(self) -> None:
        """Called by Ray Serve periodically; a replica that raises is replaced."""
        self._follower.check_health()
        self._gauges.check_health()

    async def ask(
        self, audio: UploadedAudio, question: str | None, options: Sequence[str], request_id: str
    ) -> AudioAnswers:
        """Answer one question, or without one those about all attributes. `request_id` is for the log.

        Raises:
            RequestError: the audio, the question or the options cannot be used; the form's field of audio is `file`.
        """
        log.request_id.set(request_id)
        try:
            return await self._run(lambda check: self._ask(audio, question, options, check))
        except RequestError as error:
            raise RequestError(str(error), "file" if error.field == "audio" else error.field) from error

    async def rank(self, prompt: str, waves: Sequence[Samples], rate: int, request_id: str) -> ClipRanking:
        """Rank clips of a prompt, float32 at `rate` Hz; without clips, only check that it can be done.

        Raises:
            RequestError: the prompt names nothing that clips can be ranked by, or a clip is too short.
        """
        log.request_id.set(request_id)
        if not waves:
            rankable_claims(prompt, self._follower.current.answerer.manifest.questions)
            return ClipRanking(best=0, scores=())
        best, scores = await self._run(lambda check: rank(self._follower.current.answerer, prompt, waves, rate, check))
        return ClipRanking(best=best, scores=scores)

    async def _run(self, work_on: Callable[[Check], _Result]) -> _Result:
        """Run work in a thread, when a slot is free; it is given a check that raises after a cancellation."""
        await self._slots.acquire()
        cancelled = threading.Event()

        def check() -> None:
            if cancelled.is_set():
                raise RequestError("the request was cancelled")

        work = asyncio.get_running_loop().run_in_executor(None, _contained, work_on, check)
        work.add_done_callback(lambda _: self._slots.release())  # a thread goes on for a while after a cancellation
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def about(self) -> QuestionModelInfo:
        """Describe the loaded bundle."""
        loaded = self._follower.current
        manifest = loaded.answerer.manifest
        return QuestionModelInfo(
            **bundle_info(loaded.source, loaded.digest, manifest).model_dump(),
            window_seconds=manifest.architecture.window_seconds,
            attributes=tuple(question.attribute for question in manifest.questions),
        )

    async def file(self, digest: str, path: str, part: ByteRange) -> AsyncGenerator[int | bytes, None]:
        """Yield the size of a file of the bundle with this digest, then the bytes of a part of it.

        Raises:
            NotFoundError: the bundle is not served (any more), or it has no such file.
        """
        async with aclosing(
            bundle_file(self._follower.recent, digest, path, part)
        ) as parts:  # Serve streams generator functions alone
            async for chunk in parts:
                yield chunk

    def _ask(self, audio: UploadedAudio, question: str | None, options: Sequence[str], check: Check) -> AudioAnswers:
        if question is not None:
            check_question(question, options)
        elif options:
            raise RequestError("options: need a question", "options")
        loaded = self._follower.current
        clip = decode(audio, loaded.answerer.shape.sampling_rate)
        state = loaded.answerer.read(clip.wave, check)
        answers = (
            loaded.answerer.ask_all(state) if question is None else [loaded.answerer.ask(state, question, options)]
        )
        return AudioAnswers(
            model=loaded.answerer.manifest.name,
            digest=loaded.digest,
            audio_seconds=state.info.audio_seconds,
            windows=state.info.windows,
            truncated=clip.missing_seconds > 0,
            answers=tuple(_schema(answer) for answer in answers),
        )

    def _load(self, source: ResolvedBundle) -> _LoadedAnswerer:
        loaded = _LoadedAnswerer(source, QuestionAnswerer(source.folder, self._config.threads))
        log_event("question_bundle_loaded", folder=str(source.folder), digest=loaded.digest)
        return loaded


def _contained(work_on: Callable[[Check], _Result], check: Check) -> _Result:
    """Work whose panics are errors."""
    with contain_panics():
        return work_on(check)


def decode(audio: UploadedAudio, rate: int) -> LoadedClip:
    """An uploaded file as a mono wave; one that is too long is read no further than that is known.

    Raises:
        RequestError: it cannot be read as audio, or would need too much memory.
    """
    suffix = Path(audio.name).suffix.lower()
    with tempfile.NamedTemporaryFile(suffix=suffix if suffix in SUFFIXES else "") as file:
        file.write(audio.content)
        file.flush()
        try:
            _check_size(Path(file.name))
            clip = read_clip(Path(file.name), rate, 0.0, MAX_SECONDS + 1)
        except DataError as error:
            raise RequestError(str(error).replace(file.name, "audio"), "audio") from error
    check_length(round(clip.file_seconds, 3))
    return clip


def _check_size(path: Path) -> None:
    """Check by its header that a file has no more samples than may be decoded.

    Raises:
        RequestError: it has more.
    """
    import soundfile

    try:
        info = soundfile.info(path)
    except (soundfile.SoundFileError, OSError):
        return  # another decoder may read it
    seconds = min(info.frames / info.samplerate, MAX_SECONDS + 1)
    if (samples := info.channels * info.samplerate * seconds) > _MAX_DECODED:
        raise RequestError(
            f"audio: {info.channels} channels at {info.samplerate} Hz have {samples / 1e6:.0f} million samples in "
            f"{seconds:.0f} s; at most {_MAX_DECODED / 1e6:.0f} million are allowed",
            "audio",
        )


def _schema(answer: Answer) -> AudioAnswer:
    return AudioAnswer(
        question=answer.question,
        attribute=answer.attribute,
        answer=answer.answer,
        probability=answer.probability,
        cannot_tell=answer.cannot_tell,
        options=tuple(AnswerOption(text=one.text, probability=one.probability) for one in answer.options),
    )
