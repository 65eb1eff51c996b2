"""What clients send and what they get: the request, the models, the errors. The OpenAPI document is made of these."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tinymusician.errors import RequestError
from tinymusician.runtime.generator import GenerationRequest

Format = Literal["wav", "flac", "opus"]
Code = Literal[
    "malformed",
    "unauthorized",
    "not_found",
    "method_not_allowed",
    "too_large",
    "invalid",
    "rate_limited",
    "busy",
    "not_ready",
    "failed",
    "too_slow",
]
"""Why there is no audio; programs go by this, people by the message."""
LARGEST_SEED = 2**53 - 1
"""What JavaScript still counts exactly."""


class CreateAudioRequest(BaseModel):
    """What is to be played. What is left out is the bundle's own."""

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

    prompt: Annotated[str, Field(min_length=1, max_length=4000, description="What to play, in words.")]
    seconds: Annotated[float, Field(gt=0, le=600)] | None = Field(None, description="How long.")
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] | None = Field(
        None, description="The same seed gives the same music on the same machine; one is drawn and told if left out."
    )
    guidance: Annotated[float, Field(ge=0, le=1000)] | None = Field(
        None, description="How closely to follow the prompt; what is not 1 may take two passes a step."
    )
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="Below 1 more expected, above more daring; 0 takes the likeliest code."
    )
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = Field(
        None, description="Draw among this many likeliest codes; 0 is all."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Draw among the likeliest codes that hold this share."
    )
    negative_prompt: Annotated[str, Field(min_length=1, max_length=4000)] | None = Field(
        None, description="What it should not sound like; works through guidance."
    )
    format: Format = Field("wav", description="16-bit WAV, FLAC, or Opus in Ogg.")
    stream: bool = Field(False, description="Send the audio while it is made.")

    def to_generation_request(self, seed: int, seconds: float, prompt: int) -> GenerationRequest:
        """What the engine is asked for, with the limits of this endpoint.

        Raises:
            RequestError: more than `seconds` or than `prompt` characters.
        """
        if self.seconds is not None and self.seconds > seconds:
            raise RequestError(f"seconds {self.seconds:g}: at most {seconds:g} here")
        for name, text in (("prompt", self.prompt), ("negative_prompt", self.negative_prompt or "")):
            if len(text) > prompt:
                raise RequestError(f"{name}: {len(text)} characters; at most {prompt} here")
        fields = self.model_dump(include={"prompt", "guidance", "temperature", "top_k", "top_p", "negative_prompt"})
        return GenerationRequest(seconds=self.seconds, seed=seed, **fields)


class StreamMetadata(BaseModel):
    """What is known of a piece before its first sound: `samples` of `rate` Hz, by the bundle with `digest`."""

    model_config = ConfigDict(frozen=True)

    rate: int
    samples: int
    digest: str
    version: int | None


class ModelInfo(BaseModel):
    """The bundle that plays. `digest` is the SHA-256 of its manifest.json, `version` and `artifact` its release's."""

    model_config = ConfigDict(frozen=True)

    id: str
    digest: str
    version: int | None
    artifact: str | None
    licence: str
    bytes: int
    minimum_memory: int = Field(description="Bytes of memory that playing it takes.")
    sampling_rate: int
    codebooks: int
    seconds: float = Field(description="The length that is played if none is asked for.")
    most_seconds: float = Field(description="The longest that is played.")
    guidance: float
    temperature: float
    one_pass: bool = Field(description="Whether guidance is in the weights, for a single scale or for a range of them.")
    guidance_range: tuple[float, float] | None = Field(
        description="Where guidance is in the weights, and can still be chosen: from the first number to the second."
    )


class ModelList(BaseModel):
    """What this endpoint plays: one bundle."""

    data: tuple[ModelInfo, ...]


class ErrorDetail(BaseModel):
    """What is wrong, in one line."""

    code: Code
    message: str
    field: str | None = None
    request_id: str


class ErrorResponse(BaseModel):
    """Every answer that is no success."""

    error: ErrorDetail
