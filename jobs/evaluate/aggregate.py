"""The aggregate step: reads the cached clips and features, computes the metrics, and writes them to report.json."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from jobs.evaluate.evaluator import Evaluator
from jobs.evaluate.labels import labels
from jobs.evaluate.open import has_clips
from jobs.evaluate.samples import write_samples
from jobs.evaluate.steps import agreement_groups, chunk_ranges, clip_groups, evaluated_models
from jobs.worker.model_refs import parse_label
from tinymusician.artifacts.provenance import machine
from tinymusician.artifacts.run_state import RunResult
from tinymusician.data.shards import Arrays
from tinymusician.errors import DataError
from tinymusician.evaluate.adherence import adherence_scores
from tinymusician.evaluate.aggregate import (
    ClipFeatures,
    agreement_metrics,
    clap_metrics,
    clap_scores,
    distribution_metrics,
    worst_clips,
)
from tinymusician.evaluate.bootstrap import paired_difference
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings, Floats
from tinymusician.evaluate.degenerate import count_degenerate
from tinymusician.evaluate.reference_statistics import ReferenceStatistics
from tinymusician.evaluate.results import (
    REAL,
    RECONSTRUCTED,
    AgreementMetrics,
    ClaimScore,
    DistributionMetrics,
    EvaluationResult,
    FolderResult,
    ModelResult,
    Provenance,
    RecordedAudio,
    clap_facts,
    distribution_facts,
    run_metrics,
    set_metrics,
)
from tinymusician.inputs import input_path
from tinymusician.json_types import JsonObject


def aggregate(evaluator: Evaluator) -> RunResult:
    """Compute all metrics, and write them, the audio samples and the reference's statistics to the run.

    Returns the run's metrics, and the figures of every model by its name in the recipe.

    Raises:
        NotFoundError: clips, features or measurements are missing.
        DataError: no clip of the reference or of a folder is usable, or its statistics are of another embedding.
    """
    config, run, recipe = evaluator.config, evaluator.context.run, evaluator.context.recipe
    real = recorded_features(evaluator, REAL) if has_clips(config) else None
    facts = evaluator.vector_facts
    reference = evaluator.given_statistics if real is None else ReferenceStatistics.of(real.embeddings, facts)
    compared = _Reference(reference, real if config.prompts_are_captions else None)
    model_ids, models, folders = evaluated_models(recipe), list[ModelResult](), list[FolderResult]()
    prompts = evaluator.features.embed_prompts(evaluator.prompts(range(config.clips) if model_ids else ()))
    for model_id, label in labels([*model_ids, *config.audio]).items():
        print(f"metrics of {label}", flush=True)
        if model_id in config.audio:
            folders.append(_folder_result(evaluator, model_id, label, compared))
        else:
            first = models[0].clap_by_clip if models else None
            models.append(_model_result(evaluator, model_id, label, compared, prompts, first))
    result = EvaluationResult(
        recipe=recipe.name,
        real=real and clap_metrics(real, _caption_vectors(evaluator, REAL), config.seed),
        real_adherence=_adherence(evaluator, real, evaluator.recordings.captions(REAL)) if real else {},
        reconstructed=_reconstructed(evaluator, compared) if real and model_ids else None,
        models=tuple(models),
        folders=tuple(folders),
        samples=write_samples(evaluator, models, folders),
        provenance=_provenance(evaluator, real, reference),
    )
    for clips in result.sets:
        for note in clips.distribution.notes:
            print(f"{clips.label}: {note}", flush=True)
    run.write_reference(reference.to_bytes())
    run.write_report(result)
    figures = {parse_label(model.model_id)[1]: run_metrics(model) for model in models}
    return RunResult(metrics=_main_metrics(result), evaluated=figures)


def _main_metrics(result: EvaluationResult) -> JsonObject:
    """By set, the metrics that `tmctl runs` shows."""
    metrics = {REAL: clap_facts(result.real)} if result.real else {}
    metrics |= {RECONSTRUCTED: distribution_facts(result.reconstructed)} if result.reconstructed else {}
    metrics |= {model.label: run_metrics(model) for model in result.models}
    return metrics | {folder.label: set_metrics(folder) for folder in result.folders}


@dataclass(frozen=True)
class _Reference:
    """What clips are compared with; `pairs` are the real clips of the models' prompts."""

    statistics: ReferenceStatistics
    pairs: ClipFeatures | None


def recorded_features(evaluator: Evaluator, source: str) -> ClipFeatures:
    """The features of a source of `Recordings`.

    Raises:
        DataError: none of its clips is usable.
    """
    recordings = evaluator.recordings
    groups = _groups(evaluator, source)
    features = _join([recordings.features(source, group) for group in groups])
    if len(features.indices) == 0:
        unreadable = [reason for group in groups for reason in recordings.audio(source, group).unreadable]
        raise DataError(f"evaluation: none of the {len(unreadable)} clips `{source}` is usable; {unreadable[0]}")
    return features


def _groups(evaluator: Evaluator, source: str) -> list[range]:
    return chunk_ranges(len(evaluator.recordings.clips(source).names), evaluator.config.batch_size)


def model_features(evaluator: Evaluator, model_id: str, groups: Sequence[range]) -> ClipFeatures:
    """The features of a model's clips."""
    return _join([evaluator.model_features(model_id, group) for group in groups])


def _caption_vectors(evaluator: Evaluator, source: str) -> Floats:
    """A vector of CLAP per clip of a source, NaN where it has no caption, [N, D]."""
    return evaluator.features.embed_prompts(evaluator.recordings.captions(source))


def _reconstructed(evaluator: Evaluator, compared: _Reference) -> DistributionMetrics:
    features, captions = recorded_features(evaluator, RECONSTRUCTED), evaluator.recordings.captions(RECONSTRUCTED)
    return _distribution(evaluator, features, compared, captions, _caption_vectors(evaluator, RECONSTRUCTED))


def _distribution(
    evaluator: Evaluator, features: ClipFeatures, compared: _Reference, prompts: Sequence[str], vectors: Floats
) -> DistributionMetrics:
    """The metrics of clips with these prompts and their vectors of CLAP."""
    config = evaluator.config
    metrics = distribution_metrics(
        features, compared.statistics, compared.pairs, vectors, config.seed, config.resamples
    )
    return metrics.model_copy(update={"adherence": _adherence(evaluator, features, prompts)})


def _adherence(evaluator: Evaluator, features: ClipFeatures, prompts: Sequence[str]) -> dict[str, ClaimScore]:
    """How far clips keep what their prompts claim; nothing without a judge."""
    judge = evaluator.features.judge
    if judge is None:
        return {}
    return adherence_scores(features.answers, features.indices, prompts, judge.questions, evaluator.config.seed)


def _model_result(
    evaluator: Evaluator,
    model_id: str,
    label: str,
    compared: _Reference,
    prompts: Floats,
    first: Sequence[float] | None,
) -> ModelResult:
    config = evaluator.config
    features, texts = model_features(evaluator, model_id, clip_groups(config)), evaluator.prompts(range(config.clips))
    assert features.health is not None
    scores = clap_scores(features, prompts)
    return ModelResult(
        model_id=model_id,
        label=label,
        size=evaluator.models.facts(model_id).size,
        distribution=_distribution(evaluator, features, compared, texts, prompts),
        degenerate=count_degenerate(features.health, config.degenerate),
        agreement=_agreement(evaluator, model_id),
        cost=evaluator.cost(model_id) if config.cost_runs else None,
        clap_by_clip=scores,
        clap_difference=None if first is None else paired_difference(scores, first, config.seed),
        worst=worst_clips(features, compared.statistics, texts),
    )


def _folder_result(evaluator: Evaluator, source: str, label: str, compared: _Reference) -> FolderResult:
    config, features = evaluator.config, recorded_features(evaluator, source)
    assert features.health is not None
    captions, alone = evaluator.recordings.captions(source), replace(compared, pairs=None)
    return FolderResult(
        model_id=source,
        label=label,
        distribution=_distribution(evaluator, features, alone, captions, _caption_vectors(evaluator, source)),
        degenerate=count_degenerate(features.health, config.degenerate),
        worst=worst_clips(features, compared.statistics, evaluator.recordings.clips(source).names),
        files=evaluator.recordings.clips(source).provenance,
        audio=_recorded_audio(evaluator, source),
    )


def _recorded_audio(evaluator: Evaluator, source: str) -> RecordedAudio:
    parts = [evaluator.recordings.audio(source, group) for group in _groups(evaluator, source)]
    return RecordedAudio(
        conversions=dict(sum((Counter(part.conversions) for part in parts), Counter[str]())),
        unreadable=tuple(reason for part in parts for reason in part.unreadable),
    )


def _agreement(evaluator: Evaluator, model_id: str) -> AgreementMetrics | None:
    groups = agreement_groups(evaluator.config)
    if not groups:
        return None
    return agreement_metrics([evaluator.agreement(model_id, group) for group in groups], evaluator.config.seed)


def _join(parts: Sequence[Arrays]) -> ClipFeatures:
    """All groups together, without the clips that are not valid."""
    valid = np.concatenate([part["valid"] for part in parts])
    classes, answers = (
        {
            name.removeprefix(prefix): np.concatenate([part[name] for part in parts])[valid]
            for name in parts[0]
            if name.startswith(prefix)
        }
        for prefix in ("classes/", "answers/")
    )
    embeddings = _join_embeddings(parts, "vectors", valid)
    return ClipFeatures(
        indices=np.flatnonzero(valid),
        embeddings=embeddings,
        clap=_join_embeddings(parts, "clap", valid) if "clap" in parts[0] else embeddings,
        classes=classes,
        answers=answers,
        health=np.concatenate([part["health"] for part in parts]) if "health" in parts[0] else None,
    )


def _join_embeddings(parts: Sequence[Arrays], name: str, valid: npt.NDArray[np.bool_]) -> ClipEmbeddings:
    clips = [part[name][part[f"{name}_owners"] == clip] for part in parts for clip in range(len(part["valid"]))]
    usable = [clip for clip, is_valid in zip(clips, valid, strict=True) if is_valid]
    return ClipEmbeddings.of(usable) if usable else ClipEmbeddings(parts[0][name][:0], np.zeros(0, np.int64))


def _provenance(evaluator: Evaluator, real: ClipFeatures | None, reference: ReferenceStatistics) -> Provenance:
    config, record = evaluator.config, evaluator.context.record
    audio = _recorded_audio(evaluator, REAL) if real else RecordedAudio(conversions={}, unreadable=())
    embedding = {**config.embedding.model_dump(mode="json"), **evaluator.features.embedder.facts}
    tagger, judge = evaluator.features.tagger, evaluator.features.judge
    return Provenance(
        reference=evaluator.recordings.reference.provenance if real else _file_facts(evaluator, reference),
        real_clips=len(real.indices) if real else 0,
        conversions=audio.conversions,
        unreadable=audio.unreadable,
        clips=config.clips if config.evaluates_models else 0,
        seconds=config.seconds,
        embedding={**embedding, "D": reference.dimension},
        clap={"model": config.clap, **evaluator.features.clap.facts},
        tagger=None if tagger is None else {"model": config.tagger, **tagger.facts},
        judge=None if judge is None else {"model": config.judge, **judge.facts},
        commits=_commits(evaluator),
        sampling=dict(evaluator.settings.__dict__) if config.evaluates_models else {},
        seed=config.seed,
        resamples=config.resamples,
        thresholds=config.degenerate.model_dump(),
        run=record.id,
        versions=record.versions,
        machine=f"{machine()}, {evaluator.context.device}",
    )


def _commits(evaluator: Evaluator) -> dict[str, str]:
    """By model, the commit on the hub, where it has one."""
    facts = {model_id: evaluator.models.facts(model_id) for model_id in evaluated_models(evaluator.context.recipe)}
    return {model_id: one.commit for model_id, one in facts.items() if one.commit is not None}


def _file_facts(evaluator: Evaluator, statistics: ReferenceStatistics) -> JsonObject:
    """The provenance of a reference that is given by its statistics."""
    config = evaluator.config.reference
    assert config is not None
    assert config.kind == "statistics"
    file = input_path(config.file)
    return {
        "reference": f"statistics {file.name}",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "vectors": statistics.vectors or "not recorded",
        "embedding": "checked" if statistics.embedding else "not recorded",
    }
