"""The aggregate step: reads the cached clips and features, computes the metrics, and writes them to report.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from jobs.evaluate.evaluator import Evaluator
from jobs.evaluate.labels import labels
from jobs.evaluate.steps import agreement_groups, clip_groups, evaluated_models
from tinymusician.artifacts.provenance import machine
from tinymusician.artifacts.run_state import RunResult
from tinymusician.data.shards import Arrays
from tinymusician.errors import DataError
from tinymusician.evaluate.aggregate import (
    ClipFeatures,
    agreement_metrics,
    clap_metrics,
    clap_scores,
    distribution_metrics,
    worst_clips,
)
from tinymusician.evaluate.audio import encode_flac
from tinymusician.evaluate.bootstrap import paired_difference
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings, Floats
from tinymusician.evaluate.degenerate import count_degenerate
from tinymusician.evaluate.results import (
    REAL,
    RECONSTRUCTED,
    AgreementMetrics,
    AudioClip,
    EvaluationResult,
    ModelResult,
    PromptSamples,
    Provenance,
    clap_facts,
    distribution_facts,
    run_metrics,
)
from tinymusician.runtime.audio_reader import Wave

Groups = Sequence[range]


def aggregate(evaluator: Evaluator) -> EvaluationResult:
    """Compute all metrics, and write them and the audio samples to the run.

    Raises:
        NotFoundError: clips, features or measurements are missing.
        DataError: no real clip is usable.
    """
    config, run, recipe = evaluator.config, evaluator.context.run, evaluator.context.recipe
    groups = clip_groups(config)
    prompts = evaluator.clap.text(evaluator.prompts(range(config.clips)))
    real = reference_features(evaluator, groups)
    reconstructed = reference_features(evaluator, groups, reconstructed=True)
    model_ids = evaluated_models(recipe)
    models: list[ModelResult] = []
    for model_id, label in labels(model_ids).items():
        print(f"metrics of {label}", flush=True)
        first = models[0].clap_by_clip if models else None
        models.append(_model_result(evaluator, model_id, label, real, prompts, first))
    result = EvaluationResult(
        recipe=recipe.name,
        real=clap_metrics(real, prompts, config.seed),
        reconstructed=distribution_metrics(reconstructed, real, prompts, config.seed, config.resamples),
        models=tuple(models),
        samples=_write_samples(evaluator, models),
        provenance=_provenance(evaluator, real, groups),
    )
    run.write_report(result)
    metrics = {REAL: clap_facts(result.real), RECONSTRUCTED: distribution_facts(result.reconstructed)}
    run.write_result(RunResult(metrics=metrics | {model.label: run_metrics(model) for model in result.models}))
    return result


def reference_features(evaluator: Evaluator, groups: Groups, reconstructed: bool = False) -> ClipFeatures:
    """The features of the real clips.

    Raises:
        DataError: none of them is usable.
    """
    features = _join([evaluator.reference_features(group, reconstructed) for group in groups])
    if len(features.indices) == 0:
        name = RECONSTRUCTED if reconstructed else REAL
        raise DataError(f"evaluation: none of the clips `{name}` is usable")
    return features


def model_features(evaluator: Evaluator, model_id: str, groups: Groups) -> ClipFeatures:
    """The features of a model's clips."""
    return _join([evaluator.features(model_id, group) for group in groups])


def _model_result(
    evaluator: Evaluator,
    model_id: str,
    label: str,
    real: ClipFeatures,
    prompts: Floats,
    first: Sequence[float] | None,
) -> ModelResult:
    config = evaluator.config
    features = model_features(evaluator, model_id, clip_groups(config))
    assert features.health is not None
    scores = clap_scores(features, prompts)
    return ModelResult(
        model_id=model_id,
        label=label,
        size=evaluator.models.facts(model_id).size,
        distribution=distribution_metrics(features, real, prompts, config.seed, config.resamples),
        degenerate=count_degenerate(features.health, config.degenerate),
        agreement=_agreement(evaluator, model_id),
        cost=evaluator.cost(model_id) if config.cost_runs else None,
        clap_by_clip=scores,
        clap_difference=None if first is None else paired_difference(scores, first, config.seed),
        worst=worst_clips(features, real, evaluator.prompts(range(config.clips))),
    )


def _agreement(evaluator: Evaluator, model_id: str) -> AgreementMetrics | None:
    groups = agreement_groups(evaluator.config)
    if not groups:
        return None
    return agreement_metrics([evaluator.agreement(model_id, group) for group in groups], evaluator.config.seed)


def _join(parts: Sequence[Arrays]) -> ClipFeatures:
    """All groups together, without the clips that are not valid."""
    valid = np.concatenate([part["valid"] for part in parts])
    classes = {
        name.removeprefix("classes/"): np.concatenate([part[name] for part in parts])[valid]
        for name in parts[0]
        if name.startswith("classes/")
    }
    embeddings = _join_embeddings(parts, "vectors", valid)
    return ClipFeatures(
        indices=np.flatnonzero(valid),
        embeddings=embeddings,
        clap=_join_embeddings(parts, "clap", valid) if "clap" in parts[0] else embeddings,
        classes=classes,
        health=np.concatenate([part["health"] for part in parts]) if "health" in parts[0] else None,
    )


def _join_embeddings(parts: Sequence[Arrays], name: str, valid: npt.NDArray[np.bool_]) -> ClipEmbeddings:
    clips = [part[name][part[f"{name}_owners"] == clip] for part in parts for clip in range(len(part["valid"]))]
    usable = [clip for clip, is_valid in zip(clips, valid, strict=True) if is_valid]
    return ClipEmbeddings.of(usable) if usable else ClipEmbeddings(parts[0][name][:0], np.zeros(0, np.int64))


def _write_samples(evaluator: Evaluator, models: Sequence[ModelResult]) -> tuple[PromptSamples, ...]:
    """Write the clips of the first prompts to the run: the real ones and those of every model."""
    run, config = evaluator.context.run, evaluator.config
    clips, rate = range(min(config.num_audio_samples, config.clips)), evaluator.embedder.rate
    sources: list[tuple[str, str, int, Callable[[int], Wave]]] = [
        (REAL, REAL, rate, lambda clip: evaluator.reference.wave(clip, rate).wave)
    ]
    for model in models:
        waves = [clip["wave"].astype(np.float32) / 32767 for clip in evaluator.generated(model.model_id, clips)]
        sources.append((model.model_id, model.label, evaluator.models.facts(model.model_id).rate, waves.__getitem__))
    samples = []
    for clip, prompt in zip(clips, evaluator.prompts(clips), strict=True):
        files = []
        for number, (model_id, label, source_rate, wave_of) in enumerate(sources):
            try:
                flac = encode_flac(wave_of(clip), source_rate)
            except DataError as error:
                print(f"skipped: {error}", flush=True)
                continue
            files.append(AudioClip(model_id=model_id, label=label, file=f"{clip}-{number}.flac"))
            run.write_audio(files[-1].file, flac)
        samples.append(PromptSamples(prompt=prompt, clips=tuple(files)))
    return tuple(samples)


def _provenance(evaluator: Evaluator, real: ClipFeatures, groups: Groups) -> Provenance:
    config, record = evaluator.config, evaluator.context.record
    audio = [evaluator.reference_audio(group) for group in groups]
    embedding = {**config.embedding.model_dump(mode="json"), **evaluator.embedder.facts}
    tagger = evaluator.tagger
    return Provenance(
        reference=evaluator.reference.provenance,
        real_clips=len(real.indices),
        conversions=dict(sum((Counter(part.conversions) for part in audio), Counter[str]())),
        unreadable=tuple(reason for part in audio for reason in part.unreadable),
        clips=config.clips,
        seconds=config.seconds,
        embedding={**embedding, "D": real.embeddings.dimension},
        clap={"model": config.clap, **evaluator.clap.facts},
        tagger=None if tagger is None else {"model": config.tagger, **tagger.facts},
        sampling=dict(evaluator.settings.__dict__),
        seed=config.seed,
        resamples=config.resamples,
        thresholds=config.degenerate.model_dump(),
        run=record.id,
        versions=record.versions,
        machine=f"{machine()}, {evaluator.context.device}",
    )
