"""Request and response bodies of the HTTP API."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tinymusician.errors import RequestError
from tinymusician.runtime.generator import GenerationRequest

AudioFormat = Literal["wav", "flac", "opus"]
ErrorCode = Literal[
    "malformed",
    "unauthorized",
    "not_found",
    "method_not_allowed",
    "too_large",
    "invalid",
    "rate_limited",
    "busy",
    "not_ready",
    "stopping",
    "failed",
    "request_timeout",
    "timeout",
]
"""The reason of an error, for programs; the message is for people."""
MAX_BEST_OF = 8
MAX_SEED = 2**53 - 1
"""The largest integer that JavaScript represents exactly."""


class CreateAudioRequest(BaseModel):
    """A request for audio. Fields that are omitted take the bundle's defaults."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {"prompt": "a fast fiddle reel in D major"},
                {"prompt": "a slow waltz for flute", "seconds": 2, "seed": 7, "format": "flac", "stream": True},
            ]
        },
    )

    prompt: Annotated[str, Field(min_length=1, max_length=4000, description="A description of the music.")]
    seconds: Annotated[float, Field(gt=0, le=600)] | None = Field(None, description="The length in seconds.")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(
        None,
        description="The same seed gives the same music on the same machine; by default random, returned in X-Seed.",
    )
    guidance: Annotated[float, Field(ge=0, le=1000)] | None = Field(
        None, description="Classifier-free guidance scale; values other than 1 may take two passes per step."
    )
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="Sampling temperature; 0 takes the most likely code."
    )
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = Field(
        None, description="Sample from this many most likely codes; 0 is all."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Sample from the most likely codes with this total probability."
    )
    negative_prompt: Annotated[str, Field(min_length=1, max_length=4000)] | None = Field(
        None, description="A description of what to avoid; needs guidance."
    )
    best_of: Annotated[int, Field(ge=1, le=MAX_BEST_OF)] = Field(
        1,
        description="Generate this many clips with seeds from `seed` on, and return the one that keeps best what the "
        "prompt names; it counts as that many requests. Not with `stream`.",
    )
    format: AudioFormat = Field("wav", description="16-bit WAV, FLAC, or Opus in Ogg.")
    stream: bool = Field(False, description="Send the audio while it is generated.")

    def to_generation_request(self, seed: int, seconds: float, prompt: int) -> GenerationRequest:
        """The engine's request, within the limits of this endpoint.

        Raises:
            RequestError: more than `seconds` or than `prompt` characters.
        """
        if self.seconds is not None and self.seconds > seconds:
            raise RequestError(f"seconds {self.seconds:g}: at most {seconds:g} here", "seconds")
        for name, text in (("prompt", self.prompt), ("negative_prompt", self.negative_prompt or "")):
            if len(text) > prompt:
                raise RequestError(f"{name}: {len(text)} characters; at most {prompt} here", name)
        fields = self.model_dump(include={"prompt", "guidance", "temperature", "top_k", "top_p", "negative_prompt"})
        return GenerationRequest(seconds=self.seconds, seed=seed, **fields)


class ClipRanking(BaseModel):
    """The number of the best clip, and the adherence of every clip to the prompt."""

    model_config = ConfigDict(frozen=True)

    best: int
    scores: tuple[float, ...]


class StreamMetadata(BaseModel):
    """Known before the first audio: the number of `samples`, the sampling `rate` in Hz, the bundle's `digest`.

    `unknown_words` are words of the prompts that the model does not know.
    """

    model_config = ConfigDict(frozen=True)

    rate: int
    samples: int
    digest: str
    version: int | None
    unknown_words: tuple[str, ...] = ()


class BundleInfo(BaseModel):
    """A loaded bundle: `digest` is the SHA-256 of its manifest.json; `version` and `artifact` are its release's."""

    model_config = ConfigDict(frozen=True)

    id: str
    digest: str
    version: int | None
    artifact: str | None
    licence: str
    bytes: int
    minimum_memory: int = Field(description="Memory in bytes that running it needs.")
    sampling_rate: int


class ModelInfo(BundleInfo):
    """The loaded bundle that generates."""

    codebooks: int
    seconds: float = Field(description="The default length in seconds.")
    max_seconds: float = Field(description="The maximum length in seconds.")
    guidance: float
    temperature: float
    one_pass: bool = Field(description="Whether guidance is in the weights, for one scale or a range of scales.")
    guidance_range: tuple[float, float] | None = Field(
        description="The range of guidance scales of a guidance-conditioned model."
    )


class QuestionModelInfo(BundleInfo):
    """The loaded bundle that answers questions."""

    window_seconds: float = Field(description="Longer audio is judged in windows of this length.")
    attributes: tuple[str, ...] = Field(description="What is answered without a question.")


class ModelList(BaseModel):
    """The models of this endpoint: one bundle that generates, and perhaps one that answers questions."""

    data: tuple[ModelInfo, ...]
    questions: QuestionModelInfo | None = None


class AnswerOption(BaseModel):
    """A possible answer and its probability among all options."""

    model_config = ConfigDict(frozen=True)

    text: str
    probability: float


class AudioAnswer(BaseModel):
    """The answer to one question."""

    model_config = ConfigDict(frozen=True)

    question: str
    attribute: str | None = Field(description="The attribute, if the question was not given.")
    answer: str = Field(description='One of the options, free text if there are none, or "cannot tell".')
    probability: float
    cannot_tell: float = Field(description="The probability that nothing can be told from this audio.")
    options: tuple[AnswerOption, ...]


class AudioAnswers(BaseModel):
    """Answers about one upload. All of it was judged, in `windows` of the model's length."""

    model_config = ConfigDict(frozen=True)

    model: str
    digest: str = Field(description="The SHA-256 of the bundle's manifest.json.")
    audio_seconds: float
    windows: int
    truncated: bool = Field(description="Whether the file is cut off: its header announces more audio than it has.")
    answers: tuple[AudioAnswer, ...]


class ErrorDetail(BaseModel):
    """An error, in one line."""

    code: ErrorCode
    message: str
    field: str | None = None
    request_id: str


class ErrorResponse(BaseModel):
    """The body of every error response."""

    error: ErrorDetail
