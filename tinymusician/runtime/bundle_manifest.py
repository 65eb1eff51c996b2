"""The manifest of a bundle: its files, architecture and sampling defaults."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from tinymusician.artifacts.file_names import is_portable
from tinymusician.config_model import ConfigModel, Count
from tinymusician.json_types import JsonObject

Role = Literal[
    "text_encoder",
    "cross",
    "decoder",
    "codec_decoder",
    "codec_encoder",
    "audio_encoder",
    "lm",
    "tokenizer",
    "weights",
    "plan",
]


class BundleFile(ConfigModel):
    """A file of the bundle. `dtype` describes its weights; `weights` is the role of a graph's external data."""

    path: str
    role: Role
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    dtype: str = ""

    @field_validator("path")
    @classmethod
    def _within(cls, path: str) -> str:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts:
            raise ValueError(f"{path!r}: is outside the bundle's folder")
        if not all(map(is_portable, pure.parts)):
            raise ValueError(f"{path!r}: is no name of a file on every system")
        return path


class Architecture(ConfigModel):
    """The dimensions that the engine needs.

    `positions` limits the steps of a sequence (frames plus delay). `window` is the number of frames of the training
    sequences; longer audio is generated in windows.
    """

    codebooks: Count
    vocabulary: Count
    layers: Count
    width: Count
    sampling_rate: Count
    hop: Count
    context_before: Annotated[int, Field(ge=0)]
    context_after: Annotated[int, Field(ge=0)]
    positions: Count
    window: Count
    text_tokens: Count


class SamplingDefaults(ConfigModel):
    """Defaults of a request. With `one_pass`, guidance is in the weights and a step needs one pass.

    A guidance-conditioned model has a `guidance_range`; another model of one pass has a single, fixed scale.
    """

    guidance: Annotated[float, Field(ge=0)] = 3.0
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 250
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seconds: Annotated[float, Field(gt=0)] = 10.0
    one_pass: bool = False
    guidance_range: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.guidance_range is not None:
            low, high = self.guidance_range
            if not (self.one_pass and low <= self.guidance <= high):
                raise ValueError(
                    f"guidance_range {low:g} to {high:g}: must hold guidance {self.guidance:g}, and needs one_pass"
                )
        elif self.one_pass and self.guidance != 1:
            raise ValueError(f"guidance {self.guidance:g}: 1 is needed with one_pass and no guidance_range")
        return self

    @property
    def is_fixed(self) -> bool:
        """Whether requests cannot choose the guidance scale."""
        return self.one_pass and self.guidance_range is None

    @model_serializer(mode="wrap")
    def _omit_absent_range(self, fields: SerializerFunctionWrapHandler) -> JsonObject:
        """Omit an absent range, so that earlier players can read the manifest."""
        present: JsonObject = fields(self)
        return {name: value for name, value in present.items() if name != "guidance_range" or value is not None}


class BundleManifest(ConfigModel):
    """The manifest of a bundle."""

    format: int
    name: str
    files: tuple[BundleFile, ...]
    architecture: Architecture
    sampling: SamplingDefaults
    providers: tuple[str, ...]
    minimum_memory: Annotated[int, Field(ge=0)]
    parity: JsonObject
    cost: JsonObject
    licence: str
    lineage: JsonObject

    @property
    def size(self) -> int:
        """The total size of all files in bytes."""
        return sum(file.size for file in self.files)
