"""The results of a quantization as typed documents: the job writes a `QuantizationResult` to a run's report.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tinymusician.config_model import Document, Number
from tinymusician.json_types import JsonObject
from tinymusician.quantize.precision import PrecisionPlan
from tinymusician.quantize.sensitivity import GroupSensitivity
from tinymusician.runtime.playback_cost import PlaybackCost
from tinymusician.settings import Precision


@dataclass(frozen=True)
class ParityReport:
    """How far a bundle is from PyTorch in float32. Lists are by codebook.

    `by_part` is the KL at the first step, at the delay's beginning and end (K - 1 steps each), between, and at the
    last step. `worst_logit` is the largest difference of two logits that are sampled from, at step `worst_step`.
    `first_layer` is the first decoder layer whose output is off by more than a hundredth of its size, and `first_step`
    the first step where that is so; both are -1 where none is. `codec_snr` is in dB.
    """

    kl: list[Number]
    agreement: list[Number]
    by_part: dict[str, Number]
    worst_logit: Number
    worst_step: int
    first_layer: int
    first_step: int
    layer_errors: list[Number]
    codec_snr: Number

    def facts(self) -> JsonObject:
        """The fields, for a bundle's manifest."""
        return asdict(self)


@dataclass(frozen=True)
class ParetoPoint:
    """A plan's size (bytes of the graphs) and KL (nats per code, of its worst codebook)."""

    name: str
    size: int
    kl: Number


@dataclass(frozen=True)
class ProviderSupport:
    """One graph on one execution provider: the operators that the provider lacks, and a verdict."""

    graph: str
    provider: str
    missing: tuple[str, ...]
    verdict: str


class QuantizationMetrics(Document):
    """A bundle's main metrics: sizes in bytes, KL in nats per code, SNR in dB.

    `kl_calibration` is the KL of the worst codebook on the sequences that the plan was chosen on, `kl_per_codebook`
    that on the test sequences. `playback` is None for a bundle that was refused.
    """

    plan: str
    size: int
    float32_checkpoint_size: int
    share_of_float32: float
    kl_calibration: Number
    kl_per_codebook: tuple[Number, ...]
    agreement: Number
    codec_snr_db: Number
    playback: PlaybackCost | None = None

    def flat(self) -> JsonObject:
        """All metrics in one dictionary, for an artifact and a run."""
        return {**self.model_dump(mode="json", exclude={"playback"}), **cost_facts(self.playback)}


class QuantizationResult(Document):
    """Everything that a quantization measured.

    `kl_budget` and `sensitivity` (groups to precisions to measurements) are there for an adaptive plan only.
    """

    recipe: str
    model: str
    plan: PrecisionPlan
    metrics: QuantizationMetrics
    kl_budget: float | None
    points: tuple[ParetoPoint, ...]
    sensitivity: dict[str, dict[Precision, GroupSensitivity]] | None
    parity: dict[str, ParityReport]
    providers: tuple[ProviderSupport, ...]


def cost_facts(cost: PlaybackCost | None) -> JsonObject:
    """A cost's fields; none without a cost."""
    return {} if cost is None else cost.model_dump()
