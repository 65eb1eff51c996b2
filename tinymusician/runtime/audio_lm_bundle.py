"""A bundle that answers questions: two graphs, a tokenizer, and a manifest.

    manifest.json        architecture, the questions about every attribute, size and SHA-256 of every file
    audio_encoder.onnx   audio to embeddings       lm.onnx   embeddings and tokens to the next token's logits
    tokenizer.json       text to token ids

A file whose bytes differ from the manifest's is not loaded.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from tinymusician.config_model import ConfigModel
from tinymusician.errors import BundleError
from tinymusician.json_types import JsonObject
from tinymusician.runtime.bundle import FORMAT, MANIFEST, check_file
from tinymusician.runtime.bundle_manifest import BundleFile, Role
from tinymusician.runtime.external_data import check_external_data

DEFAULT_QUESTION_BUNDLE = "band-mu"
"""The packaged bundle that answers questions."""
AUDIO_LM_ROLES: tuple[Role, ...] = ("audio_encoder", "lm", "tokenizer")


class AudioLMArchitecture(ConfigModel):
    """The dimensions that a player needs. `end` separates audio and prompt, and ends answers.

    `window_seconds` is the length of the training clips; longer audio is judged in windows of it. `levels` are the
    lowest and highest root mean square of these clips, but for one in a hundred on each side; other audio is brought
    there.
    """

    sampling_rate: int = Field(ge=1000, le=384_000)
    window_seconds: float = Field(ge=0.1, le=600)
    vocabulary: int = Field(ge=2, le=1_000_000)
    width: int = Field(ge=1, le=65_536)
    layers: int = Field(ge=1, le=1000)
    key_value_heads: int = Field(ge=1, le=1000)
    head_width: int = Field(ge=1, le=65_536)
    end: int = Field(ge=0)
    levels: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _end_is_a_token(self) -> Self:
        if self.end >= self.vocabulary:
            raise ValueError(f"end {self.end}: is no token of {self.vocabulary}")
        if self.levels is not None and not 0 < self.levels[0] <= self.levels[1] < math.inf:
            raise ValueError(f"levels {self.levels}: are not two positive numbers in order")
        return self


class FinerAttribute(ConfigModel):
    """A fine attribute that determines a coarse one: the key determines the mode.

    `values` are by the other attribute's value: `minor` has twelve keys.
    """

    attribute: str
    values: dict[str, tuple[str, ...]]


class AttributeQuestion(ConfigModel):
    """The question about an attribute, with all possible answers.

    An answer that holds for a window alone (`per_window`), such as the number of notes, says nothing of longer audio.
    Prompts of music may state the attribute (`in_prompts`), by an option or by one of the `synonyms` (name to option).
    Users' options may have `other_names` (name to options), which cover one or several.
    The probability of an answer that follows from a `finer` attribute is the sum over that one's values.
    """

    attribute: str
    text: str
    options: tuple[str, ...] = Field(min_length=2)
    per_window: bool = False
    in_prompts: bool = False
    synonyms: dict[str, str] = Field(default_factory=dict)
    other_names: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    finer: FinerAttribute | None = None


class AudioLMManifest(ConfigModel):
    """The manifest of a bundle that answers questions."""

    format: int
    kind: Literal["audio-lm"] = "audio-lm"
    name: str
    files: tuple[BundleFile, ...]
    architecture: AudioLMArchitecture
    questions: tuple[AttributeQuestion, ...]
    providers: tuple[str, ...]
    minimum_memory: int = Field(ge=0)
    parity: JsonObject
    cost: JsonObject
    licence: str
    lineage: JsonObject

    @model_validator(mode="after")
    def _has_each_file_once(self) -> Self:
        roles = [file.role for file in self.files]
        for role in AUDIO_LM_ROLES:
            if roles.count(role) != 1:
                raise ValueError(f"{roles.count(role)} files with role {role!r}; exactly one is needed")
        return self

    @model_validator(mode="after")
    def _finer_attributes_are_finest(self) -> Self:
        finest = {question.attribute for question in self.questions if question.finer is None}
        for question in self.questions:
            if question.finer is not None and question.finer.attribute not in finest:
                raise ValueError(f"questions: {question.attribute}: nothing asks for {question.finer.attribute!r}")
        return self

    def file(self, role: Role) -> str:
        """The path of the file with a role."""
        return next(file.path for file in self.files if file.role == role)


def open_audio_lm(folder: Path) -> AudioLMManifest:
    """Read the manifest of a bundle, and check every file against it.

    Raises:
        BundleError: the manifest is missing, invalid or of another kind, or a file is missing or altered.
    """
    try:
        manifest = AudioLMManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise BundleError(f"bundle {folder}: {MANIFEST} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        problem = error.errors()[0]
        if any(one["loc"] == ("sampling",) for one in error.errors()):
            raise BundleError(f"bundle {folder}: generates music; one that answers questions is needed") from None
        where = ".".join(str(key) for key in problem["loc"]) or "content"
        raise BundleError(f"bundle {folder}: {where}: {problem['msg'].removeprefix('Value error, ')}") from None
    if manifest.format != FORMAT:
        raise BundleError(f"bundle {folder}: format {manifest.format}; this version reads format {FORMAT}")
    for file in manifest.files:
        check_file(folder, file)
    check_external_data(folder, manifest.files)
    return manifest
