"""Aggregates features of clips into metrics with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from tinymusician.errors import DataError
from tinymusician.evaluate.bootstrap import mean_interval
from tinymusician.evaluate.clap_score import clap_by_clip, clap_score
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings, Floats, Indices
from tinymusician.evaluate.frechet import fad_by_clip, fad_infinity_interval, fad_interval
from tinymusician.evaluate.kad import kad
from tinymusician.evaluate.label_kl import label_divergence
from tinymusician.evaluate.reference_statistics import ReferenceStatistics
from tinymusician.evaluate.results import AgreementMetrics, ClapScore, DistributionMetrics, LabelDivergence, WorstClip

NUM_WORST_CLIPS = 5
_Metric = TypeVar("_Metric")


@dataclass(frozen=True)
class ClipFeatures:
    """The features of a model's finite clips, N of them.

    `indices` [N] are the clips' numbers in their set, `embeddings` those of FAD and KAD, `clap` those of CLAP,
    `classes` [N, C] the class probabilities by question, `answers` [N, options] the judge's by attribute. `health`
    [all clips, F] holds the fields of `ClipHealth`; it is None for the reference.
    """

    indices: Indices
    embeddings: ClipEmbeddings
    clap: ClipEmbeddings
    classes: Mapping[str, Floats]
    health: Floats | None = None
    answers: Mapping[str, Floats] = field(default_factory=dict)

    def at(self, indices: Indices) -> ClipFeatures:
        """The clips with these numbers."""
        rows = np.searchsorted(self.indices, indices)
        classes = {question: values[rows] for question, values in self.classes.items()}
        answers = {attribute: values[rows] for attribute, values in self.answers.items()}
        embeddings, clap = self.embeddings.select(rows), self.clap.select(rows)
        return ClipFeatures(indices, embeddings, clap, classes, None, answers)


def distribution_metrics(
    features: ClipFeatures,
    reference: ReferenceStatistics,
    pairs: ClipFeatures | None,
    prompts_ND: Floats,
    seed: int,
    resamples: int,
) -> DistributionMetrics:
    """Compare clips with the reference, with the real clips of the same prompts (`pairs`), and with their prompts.

    `prompts_ND` are embedded by CLAP; a row of NaN stands for no prompt.
    """
    notes: list[str] = []

    def attempt(measure: Callable[[], _Metric]) -> _Metric | None:
        try:
            return measure()
        except DataError as error:
            notes.append(str(error))
            return None

    few = max(20, resamples // 2)
    infinity = attempt(lambda: fad_infinity_interval(features.embeddings, reference, seed, few))
    if len(features.indices) == 0:
        notes.append("no clip is finite; see the degenerate clips")
    clap = clap_metrics(features, prompts_ND, seed)
    if clap is not None and (prompted := len(_prompted(features, prompts_ND))) < len(features.indices):
        notes.append(f"CLAP: only {prompted} of {len(features.indices)} clips have a caption")
    return DistributionMetrics(
        clips=len(features.indices),
        fad=attempt(lambda: fad_interval(features.embeddings, reference, seed, resamples)),
        fad_infinity=infinity[0] if infinity else None,
        fad_points=infinity[1].points if infinity else (),
        kad=attempt(lambda: kad(features.embeddings, reference, seed, resamples)),
        clap=clap,
        labels=_labels(features, pairs, seed) if pairs is not None else {},
        notes=tuple(notes),
    )


def clap_metrics(features: ClipFeatures, prompts_ND: Floats, seed: int) -> ClapScore | None:
    """The CLAP score of the clips that have a prompt (no row of NaN); None if none has."""
    prompted = _prompted(features, prompts_ND)
    return clap_score(features.at(prompted).clap, prompts_ND[prompted], seed) if len(prompted) else None


def _prompted(features: ClipFeatures, prompts_ND: Floats) -> Indices:
    """The clips that have a prompt."""
    return features.indices[np.isfinite(prompts_ND[features.indices]).all(axis=1)]


def clap_scores(features: ClipFeatures, prompts_ND: Floats) -> tuple[float, ...]:
    """One CLAP score per prompt, NaN where there is no finite clip."""
    scores = np.full(len(prompts_ND), np.nan)
    if len(features.indices):
        scores[features.indices] = clap_by_clip(features.clap, prompts_ND[features.indices])
    return tuple(scores.round(5).tolist())


def agreement_metrics(groups: Sequence[Mapping[str, Floats]], seed: int) -> AgreementMetrics:
    """Join groups of clips, each with the arrays of `Agreement` [N, K], `teacher_nll` [N] and `code_entropy` [N]."""
    joined = {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}
    by_clip = {name: joined[name].mean(axis=1) for name in ("forward", "reverse", "top_1", "with_text")}
    by_clip |= {name: joined[name] for name in ("teacher_nll", "code_entropy")}
    intervals = {name: mean_interval(values, seed) for name, values in by_clip.items() if name != "with_text"}
    has_two_passes = not np.isnan(by_clip["with_text"]).all()
    return AgreementMetrics(
        clips=len(joined["forward"]),
        forward_by_codebook=tuple(joined["forward"].mean(axis=0).tolist()),
        with_text=mean_interval(by_clip["with_text"], seed) if has_two_passes else None,
        **intervals,
    )


def worst_clips(
    features: ClipFeatures, reference: ReferenceStatistics, prompts: Sequence[str]
) -> tuple[WorstClip, ...]:
    """The clips with the highest FAD of their own; none where the reference is too small for one."""
    try:
        distances = fad_by_clip(features.embeddings, reference)
    except DataError:
        return ()
    order = np.argsort(distances)[::-1][:NUM_WORST_CLIPS]
    pairs = [(int(features.indices[n]), float(distances[n])) for n in order]
    return tuple(WorstClip(clip=clip, fad=value, prompt=prompts[clip]) for clip, value in pairs)


def _labels(features: ClipFeatures, real: ClipFeatures, seed: int) -> dict[str, LabelDivergence]:
    both = np.intersect1d(features.indices, real.indices)
    if not len(both):
        return {}
    generated, expected = features.at(both), real.at(both)
    return {
        question: label_divergence(expected.classes[question], generated.classes[question], seed)
        for question in generated.classes
    }
