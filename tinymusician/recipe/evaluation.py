"""The `evaluate` and `sweep` sections of a recipe."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from tinymusician.config_model import ConfigModel, Count
from tinymusician.settings import DegenerateThresholds


class BandReferenceConfig(ConfigModel):
    """The rendered test tunes of the house band, with their captions."""

    kind: Literal["band"] = "band"


class FolderReferenceConfig(ConfigModel):
    """A folder of clips, each with its caption in a .txt of the same name; models need captions, recordings do not."""

    kind: Literal["folder"] = "folder"
    audio: str = Field(min_length=1, description="the folder")


class MusicCapsReferenceConfig(ConfigModel):
    """MusicCaps: its published table, and the audio that the user collected for it."""

    kind: Literal["musiccaps"] = "musiccaps"
    table: str = Field(description="musiccaps-public.csv")
    audio: str = Field(description="the folder of YTID.wav")
    subset: Literal["all", "balanced", "eval"] = "all"


class MusicBenchReferenceConfig(ConfigModel):
    """MusicBench: one of its published tables, and its unpacked audio."""

    kind: Literal["musicbench"] = "musicbench"
    table: str = Field(description="such as MusicBench_test_A.json")
    audio: str = Field(description="the folder of the table's locations")


class StatisticsReferenceConfig(ConfigModel):
    """The statistics of a reference set instead of its clips, as `tmctl runs reference` saves them."""

    kind: Literal["statistics"] = "statistics"
    file: str = Field(description="an .npz file: mean, covariance and embeddings; or mu and sigma of another tool")


Reference = Annotated[
    BandReferenceConfig
    | FolderReferenceConfig
    | MusicCapsReferenceConfig
    | MusicBenchReferenceConfig
    | StatisticsReferenceConfig,
    Field(discriminator="kind"),
]


class ClapEmbeddingConfig(ConfigModel):
    """A CLAP in transformers' layout: windows of its own length, in a joint space with prompts."""

    kind: Literal["clap"] = "clap"
    model: str = Field("laion/larger_clap_music", description="hub id, local folder, or band-clap")


class EncodecEmbeddingConfig(ConfigModel):
    """The states of an EnCodec's encoder, one vector per frame."""

    kind: Literal["encodec"] = "encodec"
    model: str = Field("facebook/encodec_32khz", description="hub id or folder of an EnCodec or a MusicGen")


class VggishEmbeddingConfig(ConfigModel):
    """VGGish, the embedding of the first FAD."""

    kind: Literal["vggish"] = "vggish"
    checkpoint: str = Field(description="vggish-10086976.pth of harritaylor/torchvggish")


class LaionClapEmbeddingConfig(ConfigModel):
    """laion-clap itself, in its own environment."""

    kind: Literal["laion-clap"] = "laion-clap"
    checkpoint: str = Field(description="such as music_audioset_epoch_15_esc_90.14.pt")
    tokenizer: str = Field(description="a folder with RoBERTa's vocab.json and merges.txt")
    environment: str = Field(description="the folder that `infra/environments/install laion-clap FOLDER` made")
    audio_model: Literal["HTSAT-tiny", "HTSAT-base"] = Field(
        "HTSAT-base", description="the architecture of the checkpoint"
    )

    @field_validator("environment")
    @classmethod
    def _no_word_of_a_shell(cls, folder: str) -> str:
        if not re.fullmatch(r"[\w@%+=:,./~-]+", folder, re.ASCII):
            raise ValueError(f"{folder!r}: letters, digits and @%+=:,./~_- are allowed; Ray passes it to a shell")
        return folder


Embedding = Annotated[
    ClapEmbeddingConfig | EncodecEmbeddingConfig | VggishEmbeddingConfig | LaionClapEmbeddingConfig,
    Field(discriminator="kind"),
]


EvaluateStep = Literal["generate", "embed", "aggregate", "render"]


class EvaluateConfig(ConfigModel):
    """Reference clips, embedding models and sizes of an evaluation."""

    models: tuple[str, ...] = Field((), description="the evaluated models; if none, the newest student of this recipe")
    audio: tuple[str, ...] = Field(
        (),
        description="folders of audio files that are scored whole, beside the models or alone; NAME=FOLDER names one",
    )
    reference: Reference | None = Field(None, description="the real clips; their captions are the prompts")
    prompts: str | None = Field(
        None,
        description="the models' prompts, a packaged set or a file, if not the captions of the reference, which then "
        "counts whole; of the prompts that students are trained on (sequences.prompts), the test split",
    )
    clips: Annotated[int, Field(ge=2)] = Field(
        1100, description="clips per model; FAD needs more windows than dimensions"
    )
    seconds: float = Field(10.0, ge=0.1, le=30.0, description="length of every clip, in seconds")
    embedding: Embedding = Field(ClapEmbeddingConfig(), description="the embedding model of FAD and KAD")
    clap: str = Field(
        "laion/larger_clap_music",
        description="the ClapModel of the CLAP score; `embedding` uses that of FAD, if it embeds text",
    )
    tagger: str | None = Field(
        None,
        description="the classifier of the label divergence: band-tagger, or an audio classifier of transformers",
    )
    judge: str | None = Field(
        None,
        description="a bundle that answers questions, such as band-mu: clips are asked for what their prompts claim",
    )
    agreement_clips: Annotated[int, Field(ge=0)] = Field(
        32, description="the teacher's samples on which models are compared with the teacher"
    )
    cost_runs: Annotated[int, Field(ge=0)] = Field(
        3, description="clips that each model generates alone, for the cost; 0 measures none"
    )
    num_audio_samples: Count = Field(4, description="prompts with audio in the report")
    resamples: Annotated[int, Field(ge=20)] = Field(200, description="resamples of the interval of a distance")
    batch_size: Count = Field(16, description="clips per batch")
    seed: Annotated[int, Field(ge=0)] = 0
    on_unreadable: Literal["skip", "refuse"] = Field(
        "skip", description="what to do with real clips that cannot be read"
    )
    degenerate: DegenerateThresholds = DegenerateThresholds()
    first: EvaluateStep = Field(
        "generate", description="the first step to run (`--from`); earlier steps are read from the store"
    )

    @property
    def evaluates_models(self) -> bool:
        """Whether models generate clips; without any named, the recipe's newest student does, unless there is audio."""
        return bool(self.models) or not self.audio

    @property
    def prompts_are_captions(self) -> bool:
        """Whether each clip of a model has a real clip with the same caption beside it."""
        return self.evaluates_models and self.prompts is None

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        if repeated := set(self.models) & set(self.audio):
            raise ValueError(f"audio {min(repeated)}: is given as a model, too")
        if len(set(self.audio)) < len(self.audio):
            raise ValueError("audio: a folder is given twice")
        if any(not entry or entry.endswith("=") for entry in self.audio):
            raise ValueError("audio: an entry names no folder")
        return self

    @model_validator(mode="after")
    def _has_prompts(self) -> Self:
        if isinstance(self.reference, StatisticsReferenceConfig) and self.prompts_are_captions:
            raise ValueError("prompts: reference statistics have no captions; give the models' prompts by path")
        return self

    @model_validator(mode="after")
    def _knows_texts(self) -> Self:
        if self.clap == "embedding" and self.embedding.kind not in ("clap", "laion-clap"):
            raise ValueError(
                f"clap embedding: embedding {self.embedding.kind} has no text encoder; clap and laion-clap have one"
            )
        return self


Grid = Literal["objectives", "temperature", "skew", "switch"]


class SweepConfig(ConfigModel):
    """Trainings that differ in one setting; steps and sizes are those of `training`."""

    over: tuple[Grid, ...] = Field(
        ("objectives", "temperature", "skew", "switch"),
        min_length=1,
        description="objectives: the six of the paper; temperature: τ and its axis; skew: λ of stage_mixed; "
        "switch: when stage_mixed changes from forward to reverse",
    )
    seeds: Count = Field(3, description="trainings per value, which differ in the order of sequences")
    clips: Annotated[int, Field(ge=2)] = Field(64, description="clips per student")
