"""The results of an evaluation as typed documents.

The aggregate step writes an `EvaluationResult` to a run's report.json. Rendering, releases and the claims of the paper
read it from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from tinymusician.config_model import Document, Number
from tinymusician.evaluate.bootstrap import Interval
from tinymusician.json_types import JsonObject

REAL, RECONSTRUCTED = "real", "real, reconstructed"
"""The sets of the real clips, and of the real clips after the teacher's codec."""
Fault = Literal["not finite", "silent", "clipped", "offset", "looped", "quiet"]


class ClapScore(Document):
    """The CLAP score, the score of clips with the prompts of others (`shuffled`), and how often a shuffle is as high.

    Without two different prompts nothing can be shuffled: `shuffled` and `p_shuffled` are None.
    """

    score: Interval
    shuffled: float | None = None
    p_shuffled: float | None = None


class LabelDivergence(Document):
    """In nats, `forward` is KL(real ‖ generated) and `reverse` KL(generated ‖ real); `agreement` is of top labels."""

    forward: Interval
    reverse: Interval
    agreement: Interval


class ClaimScore(Document):
    """How far clips keep what their prompts claim of one attribute.

    `probability` is the mean probability of the claimed answer, `top` the share of clips where it is the most probable;
    `clips` have such a prompt.
    """

    clips: int
    probability: Interval
    top: Interval


class DistributionMetrics(Document):
    """Distances of a set of clips from the real ones, and the adherence to their prompts by attribute.

    `clips` counts those that are finite. A metric that could not be computed is None, and `notes` say why.
    """

    clips: int
    fad: Interval | None
    fad_infinity: Interval | None
    fad_points: tuple[tuple[int, float], ...]
    kad: Interval | None
    clap: ClapScore | None
    labels: dict[str, LabelDivergence]
    adherence: dict[str, ClaimScore] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def clap_score(self) -> Interval | None:
        """The CLAP score alone; None without clips."""
        return self.clap.score if self.clap else None


class AgreementMetrics(Document):
    """Agreement with the teacher in nats per code and shares, and two statistics of the model's own samples.

    `forward`, `reverse`, `top_1` and `with_text` are defined in `agreement.Agreement`; their lists are by codebook.
    `with_text` is None for a model with one pass.
    `teacher_nll` is the teacher's mean negative log-likelihood of the model's own codes, `code_entropy` their entropy.
    """

    clips: int
    forward: Interval
    reverse: Interval
    top_1: Interval
    with_text: Interval | None
    forward_by_codebook: tuple[Number, ...]
    teacher_nll: Interval
    code_entropy: Interval


class InferenceCost(Document):
    """The cost of generating one clip at a time, medians over the runs.

    `seconds` for a clip of `length` seconds, `real_time_factor` their ratio, with its lowest and highest run; `cpu`
    is the number of busy processors; `memory` the peak bytes beyond the libraries, `gpu_memory` those on the GPU;
    `flops` floating-point operations per second of audio (PyTorch models only); `joules` per second of audio of all
    processors of the machine. What cannot be measured is None. `sizes` are bytes by component.
    """

    length: float
    seconds: float
    real_time_factor: float
    lowest: float
    highest: float
    cpu: float
    memory: int
    gpu_memory: int | None
    flops: float | None
    joules: float | None
    sizes: dict[str, int]


class DegenerateCounts(Document):
    """The number of clips with any fault and with each, and the share of quiet frames in all clips."""

    clips: int
    by_fault: dict[Fault, int]
    quiet: float


class WorstClip(Document):
    """A clip far from the reference, by its own FAD; of a folder of audio, `prompt` is the name of the file."""

    clip: int
    fad: float
    prompt: str


class RecordedAudio(Document):
    """How audio files were read: the number of clips by conversion, and why clips cannot be read."""

    conversions: dict[str, int]
    unreadable: tuple[str, ...]


class ClipSetResult(Document):
    """The clips of one model or folder."""

    model_id: str
    label: str
    distribution: DistributionMetrics
    degenerate: DegenerateCounts
    worst: tuple[WorstClip, ...]


class FolderResult(ClipSetResult):
    """One evaluated folder of audio; `model_id` is its entry in `evaluate.audio`.

    `files` describes the folder with what is left out of it, `audio` how its files were read.
    """

    files: JsonObject
    audio: RecordedAudio


class ModelResult(ClipSetResult):
    """One evaluated model.

    `size` is in bytes. `clap_by_clip` has one CLAP score per prompt, NaN where the clip is not finite;
    `clap_difference` is the paired difference from the first model, None for that model itself.
    """

    size: int
    agreement: AgreementMetrics | None
    cost: InferenceCost | None
    clap_by_clip: tuple[Number, ...]
    clap_difference: Interval | None


class Provenance(Document):
    """The conditions under which an evaluation's metrics were measured."""

    reference: JsonObject = Field(description="reference set")
    real_clips: int = Field(description="real clips")
    conversions: dict[str, int] = Field(description="conversions of the real clips")
    unreadable: tuple[str, ...] = Field(description="real clips that were skipped")
    clips: int = Field(description="clips per model")
    seconds: float = Field(description="seconds per clip")
    embedding: JsonObject = Field(description="embedding of FAD and KAD")
    clap: JsonObject = Field(description="model of the CLAP score")
    tagger: JsonObject | None = Field(description="classifier of the labels")
    judge: JsonObject | None = Field(None, description="judge of the adherence")
    commits: dict[str, str] = Field(default_factory=dict, description="commits of hub models")
    sampling: dict[str, float] = Field(description="sampling")
    seed: int = Field(description="seed")
    resamples: int = Field(description="resamples per interval")
    thresholds: dict[str, float] = Field(description="thresholds of degenerate clips")
    run: str = Field(description="run")
    versions: dict[str, str] = Field(description="versions")
    machine: str = Field(description="machine")

    def rows(self) -> list[tuple[str, str]]:
        """Each field's description and value, for a table."""
        content = self.model_dump(mode="json")
        return [(str(field.description), _text(content[name])) for name, field in type(self).model_fields.items()]


class AudioClip(Document):
    """A clip of the report: its model and label, and the name of its FLAC file in the run's folder.

    `model_id` is `REAL` for the real clip.
    """

    model_id: str
    label: str
    file: str


class PromptSamples(Document):
    """The clips of one prompt to listen to."""

    prompt: str
    clips: tuple[AudioClip, ...]


class EvaluationResult(Document):
    """Everything that an evaluation measured.

    `real` is the CLAP score of the real clips, None without captions, and `real_adherence` that of the real clips to
    their captions; `reconstructed` the metrics of the real clips after the teacher's codec, None where only audio was
    evaluated, or the reference is given by its statistics.
    """

    recipe: str
    real: ClapScore | None
    real_adherence: dict[str, ClaimScore] = Field(default_factory=dict)
    reconstructed: DistributionMetrics | None
    models: tuple[ModelResult, ...]
    folders: tuple[FolderResult, ...] = ()
    samples: tuple[PromptSamples, ...]
    provenance: Provenance

    @property
    def sets(self) -> tuple[ClipSetResult, ...]:
        """The models and the folders."""
        return *self.models, *self.folders


Facts = dict[str, float | None]


def set_metrics(clips: ClipSetResult) -> Facts:
    """The main metrics of a model or a folder, as `tmctl runs` shows them."""
    return {**distribution_facts(clips.distribution), **_degenerate_facts(clips)}


def _degenerate_facts(clips: ClipSetResult) -> Facts:
    return {"degenerate": clips.degenerate.clips, "quiet": clips.degenerate.quiet}


def run_metrics(model: ModelResult) -> Facts:
    """A model's main metrics, as releases sign them."""
    kl = model.agreement.forward if model.agreement else None
    return {
        **distribution_facts(model.distribution),
        "kl": _value(kl),
        **_degenerate_facts(model),
        "bytes": model.size,
        "real_time_factor": model.cost.real_time_factor if model.cost else None,
    }


def distribution_facts(metrics: DistributionMetrics) -> Facts:
    """The values of a set's metrics by name."""
    distances = {"fad": metrics.fad, "fad_infinity": metrics.fad_infinity, "kad": metrics.kad}
    adherence = {f"adherence_{name}": score.probability.value for name, score in metrics.adherence.items()}
    return {**{name: _value(one) for name, one in distances.items()}, **clap_facts(metrics.clap), **adherence}


def clap_facts(clap: ClapScore | None) -> Facts:
    """The values of a CLAP score by name."""
    return {"clap": clap.score.value if clap else None, "clap_shuffled": clap.shuffled if clap else None}


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else interval.value


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
