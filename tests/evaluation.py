"""An evaluation's result with two models, as rendering reads it."""

from __future__ import annotations

from tinymusician.evaluate.bootstrap import Interval
from tinymusician.evaluate.degenerate import FAULTS
from tinymusician.evaluate.results import (
    AgreementMetrics,
    ClapScore,
    DegenerateCounts,
    DistributionMetrics,
    EvaluationResult,
    InferenceCost,
    LabelDivergence,
    ModelResult,
    Provenance,
    WorstClip,
)

NAN = float("nan")


def interval(value: float) -> Interval:
    return Interval(value, value - 0.1, value + 0.1)


def model(label: str, extrapolated: bool) -> ModelResult:
    label_divergence = LabelDivergence(forward=interval(0.2), reverse=interval(0.2), agreement=interval(0.2))
    distribution = DistributionMetrics(
        clips=9, fad=interval(0.4), fad_infinity=interval(0.3), kad=interval(2.0),
        fad_points=((9, 0.4), (6, 0.5)) if extrapolated else (),
        clap=ClapScore(score=interval(0.5), shuffled=0.1, p_shuffled=0.001), labels={"tempo": label_divergence},
        notes=() if extrapolated else ("FAD: 9 vectors; at least 129 are needed",),
    )  # fmt: skip
    agreement = AgreementMetrics(
        clips=4, forward=interval(0.5), reverse=interval(0.5), top_1=interval(0.5), with_text=None,
        forward_by_codebook=(0.1, 0.2), teacher_nll=interval(0.5), code_entropy=interval(0.5),
    )  # fmt: skip
    cost = InferenceCost(
        length=5, seconds=1, real_time_factor=0.2, lowest=0.1, highest=0.3, cpu=1.5, memory=400_000_000,
        gpu_memory=None, flops=None, joules=None, sizes={"decoder": 5_000_000},
    )  # fmt: skip
    faults = dict.fromkeys(FAULTS, 0) | {"silent": 1}
    return ModelResult(
        model_id=f"{label}@sha256:00", label=label, size=5_000_000, distribution=distribution,
        degenerate=DegenerateCounts(clips=1, by_fault=faults, quiet=0.02), agreement=agreement, cost=cost,
        clap_by_clip=(0.5, NAN), clap_difference=None if extrapolated else interval(0.0),
        worst=() if extrapolated else (WorstClip(clip=3, fad=1.5, prompt="a slow jig"),),
    )  # fmt: skip


def evaluation() -> EvaluationResult:
    """A result as rendering reads it: written as JSON, and read again."""
    provenance = Provenance(
        reference={"reference": "folder"}, real_clips=9, conversions={}, unreadable=(), clips=9, seconds=5.0,
        embedding={"kind": "clap"}, clap={"model": "band-clap"}, tagger=None, sampling={"top_k": 250}, seed=0,
        resamples=20, thresholds={"silent": 0.9}, run="e1", versions={}, machine="x",
    )  # fmt: skip
    bundle = model("bundle", False)
    result = EvaluationResult(
        recipe="x", real=ClapScore(score=interval(0.8)), reconstructed=bundle.distribution,
        models=(model("<student>", True), bundle), samples=(), provenance=provenance,
    )  # fmt: skip
    return EvaluationResult.model_validate_json(result.model_dump_json())
