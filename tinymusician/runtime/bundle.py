"""A bundle: a folder of ONNX graphs that phones, browsers and servers run, and its manifest.

    manifest.json       architecture, sampling defaults, and size and SHA-256 of every file
    text_encoder.onnx   text to states                      cross.onnx          states to cross-attention
    decoder.onnx        the codes of one step to logits       codec_decoder.onnx  codes to audio
    codec_encoder.onnx  audio to codes, if clips can be continued
    tokenizer.json      text to token ids

There is one file per component, so an update of the decoder does not download the text encoder again. A file whose
bytes differ from the manifest's is not loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from tinymusician.config_model import ConfigModel, Count, JsonObject
from tinymusician.errors import BundleError

FORMAT = 1
MANIFEST = "manifest.json"
Role = Literal["text_encoder", "cross", "decoder", "codec_decoder", "codec_encoder", "tokenizer", "weights", "plan"]
NEEDED: tuple[Role, ...] = ("text_encoder", "cross", "decoder", "codec_decoder", "tokenizer")


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
        if pure.is_absolute() or ".." in pure.parts or "\\" in path or not pure.parts or ":" in path:
            raise ValueError(f"{path!r}: is outside the bundle's folder")
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


class Bundle:
    """A bundle whose files were checked."""

    def __init__(self, folder: Path, manifest: BundleManifest) -> None:
        self.folder, self.manifest = folder, manifest

    def path(self, role: Role) -> Path:
        """The path of the file with this role.

        Raises:
            BundleError: the bundle has no such file.
        """
        for file in self.manifest.files:
            if file.role == role:
                return self.folder / file.path
        raise BundleError(f"bundle {self.folder}: has no {role.replace('_', ' ')}")

    def has(self, role: Role) -> bool:
        """Whether there is a file with this role."""
        return any(file.role == role for file in self.manifest.files)


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest and check every file against it.

    Raises:
        BundleError: the manifest is missing, invalid or of another format, or a file is missing or altered.
    """
    manifest = read_manifest(folder)
    for file in manifest.files:
        check_file(folder, file)
    roles = [file.role for file in manifest.files]
    for role in NEEDED:
        if roles.count(role) != 1:
            raise BundleError(f"bundle {folder}: {roles.count(role)} files with role {role!r}; exactly one is needed")
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> BundleManifest:
    """Read the manifest without checking the files."""
    path = folder / MANIFEST
    try:
        manifest = BundleManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BundleError(f"bundle {folder}: {MANIFEST} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(key) for key in problem["loc"]) or "content"
        raise BundleError(f"bundle {path}: {where}: {problem['msg'].removeprefix('Value error, ')}") from None
    if manifest.format != FORMAT:
        raise BundleError(f"bundle {path}: format {manifest.format}; this version reads format {FORMAT}")
    return manifest


def check_file(folder: Path, file: BundleFile) -> None:
    """Compare a file's size and SHA-256 with the manifest's."""
    path = folder / file.path
    try:
        size = path.stat().st_size
        if size != file.size:
            raise BundleError(f"bundle {folder}: {file.path} has {size} bytes; the manifest says {file.size}")
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"bundle {folder}: {file.path} cannot be read ({error.strerror})") from error
    if digest != file.sha256:
        raise BundleError(f"bundle {folder}: {file.path} was altered: its SHA-256 is {digest}")


def describe_files(folder: Path, roles: Sequence[tuple[str, Role, str]]) -> tuple[BundleFile, ...]:
    """Manifest entries for the files (path, role, dtype) of a folder."""
    entries = []
    for path, role, dtype in roles:
        with (folder / path).open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        size = (folder / path).stat().st_size
        entries.append(BundleFile(path=path, role=role, size=size, sha256=digest, dtype=dtype))
    return tuple(entries)
