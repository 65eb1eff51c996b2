"""The end of an evaluation: what was kept becomes figures with intervals, and a report that people open."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from jobs.evaluate.evaluator import (
    AGREEMENT_GROUP,
    REAL,
    RECONSTRUCTED,
    Evaluator,
    agreement_clips,
    chunk_ranges,
    evaluated_models,
    labels,
    short_label,
)
from jobs.evaluate.provenance import curves, sensitivities
from tinymusician.artifacts.run_state import RunResult
from tinymusician.data.shards import Arrays
from tinymusician.errors import DataError
from tinymusician.evaluate.audio import encode_flac
from tinymusician.evaluate.bootstrap import Interval, as_json, difference, mean_interval
from tinymusician.evaluate.clap_score import clap_score
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings, Floats, Indices
from tinymusician.evaluate.degenerate import KINDS, ClipHealth, problems
from tinymusician.evaluate.frechet import fad_by_clip, fad_infinity_interval, fad_interval
from tinymusician.evaluate.kad import kad
from tinymusician.evaluate.label_kl import label_divergence
from tinymusician.evaluate.report import AudioSample, html_report, markdown_report
from tinymusician.recipe import DegenerateThresholds

NUM_WORST_CLIPS = 5


@dataclass(frozen=True)
class ClipFeatures:
    """Everything that was heard of a voice's clips; `places` are the numbers of those that are sound."""

    indices: Indices
    vectors: ClipEmbeddings
    clap: ClipEmbeddings
    classes: dict[str, Floats]
    health: Floats | None
    provenance: Counter[str]

    def at(self, indices: Indices) -> ClipFeatures:
        """The clips of these numbers alone."""
        index = np.searchsorted(self.indices, indices)
        classes = {question: values[index] for question, values in self.classes.items()}
        return ClipFeatures(
            indices, self.vectors.chosen(index), self.clap.chosen(index), classes, None, self.provenance
        )


def write_report(evaluation: Evaluator) -> None:
    """Figures, report.html, report.md and report.json in the run's folder, and the run's result."""
    run, config = evaluation.context.run, evaluation.config
    real = clip_features(evaluation, REAL)
    prompts = evaluation.clap.text(evaluation.prompts(range(config.clips)))
    model_ids = evaluated_models(evaluation.recipe)
    names = labels(model_ids)
    results: dict[str, dict[str, Any]] = {REAL: {"clap": _clap(evaluation, real, prompts)}}
    results[RECONSTRUCTED] = distribution_metrics(evaluation, clip_features(evaluation, RECONSTRUCTED), real, prompts)
    scores: dict[str, Floats] = {}
    far: dict[str, Any] = {}
    for model_id in model_ids:
        print(f"figures of {names[model_id]}", flush=True)
        one = clip_features(evaluation, model_id)
        results[names[model_id]] = model_metrics(evaluation, model_id, one, real, prompts)
        scores[names[model_id]] = _clip_scores(evaluation, one, prompts)
        far[names[model_id]] = worst_clips(evaluation, one, real)
    for name, features in scores.items():
        results[name]["clap_less_first"] = mean_difference(features, scores[names[model_ids[0]]], config.seed)
        results[name]["clap_by_clip"] = features.round(5).tolist()
    content = as_json({"models": results, "how": provenance_of(evaluation, real), "worst": far})
    listened, store = _audio_samples(evaluation, names), run.store
    page = html_report(evaluation.recipe.name, content, listened, curves(store, names), sensitivities(store, names))
    run.write_report(content, page, markdown_report(evaluation.recipe.name, content))
    run.write_result(RunResult(metrics={name: summary(one) for name, one in content["models"].items()}))


def clip_features(evaluation: Evaluator, model_id: str, clips: int | None = None) -> ClipFeatures:
    """All groups of a voice's clips (the first `clips`) together, without those that cannot be read or are no numbers.

    Raises:
        DataError: none of the real clips is left, and so nothing can be compared with them.
    """
    config = evaluation.config
    listen = partial(evaluation.features, model_id)
    if model_id in (REAL, RECONSTRUCTED):
        listen = partial(evaluation.real_features, coded=model_id == RECONSTRUCTED)
    parts = [listen(group) for group in chunk_ranges(clips or config.clips, config.batch_size)]
    valid = np.concatenate([part["kept"] for part in parts])
    indices = np.flatnonzero(valid)
    if len(indices) == 0 and model_id in (REAL, RECONSTRUCTED):
        raise DataError(f"evaluation: not one clip of {short_label(model_id)} is sound")
    notes = Counter[str]()
    for part in parts:
        notes.update(json.loads(part["told"].tobytes()) if "told" in part else {})
    vectors = _join_embeddings(parts, "vectors", valid)
    questions = [name for name in parts[0] if name.startswith("classes/")]
    classes = {name.removeprefix("classes/"): _stack(parts, name)[valid] for name in questions}
    health = _stack(parts, "health") if "health" in parts[0] else None
    clap = _join_embeddings(parts, "clap", valid) if "clap" in parts[0] else vectors
    return ClipFeatures(indices, vectors, clap, classes, health, notes)


def mean_difference(scores: Floats, first: Floats, seed: int) -> Interval | None:
    """The mean difference of the CLAP scores of clips that both have; None if there are none."""
    both = np.isfinite(scores) & np.isfinite(first)
    return difference(scores[both], first[both], seed) if both.any() else None


def _stack(parts: list[Arrays], name: str) -> Floats:
    return np.concatenate([part[name] for part in parts])


def _join_embeddings(parts: list[Arrays], name: str, valid: Any) -> ClipEmbeddings:
    """The vectors of the kept clips, numbered through."""
    clips = [part[name][part[f"{name}_owners"] == clip] for part in parts for clip in range(int(part["kept"].shape[0]))]
    sound = [clip for clip, good in zip(clips, valid, strict=True) if good]
    return ClipEmbeddings.of(sound) if sound else ClipEmbeddings(parts[0][name][:0], np.zeros(0, np.int64))


def model_metrics(
    evaluation: Evaluator, model_id: str, features: ClipFeatures, real: ClipFeatures, prompts: Floats
) -> dict[str, Any]:
    """Everything that is said of one voice."""
    assert features.health is not None
    return {
        **distribution_metrics(evaluation, features, real, prompts),
        "degenerate": count_degenerate(features.health, evaluation.config.degenerate),
        "agreement": _agreement(evaluation, model_id),
        "cost": evaluation.cost(model_id) if evaluation.config.cost_runs else None,
        "bytes": evaluation.facts(model_id).size,
    }


def distribution_metrics(
    evaluation: Evaluator, features: ClipFeatures, real: ClipFeatures, prompts: Floats
) -> dict[str, Any]:
    """How clips compare with the real ones and their captions; what cannot be told is None, and why is in `notes`."""
    config = evaluation.config
    notes: list[str] = []

    def tried(measure: Callable[[], Any]) -> Any:
        try:
            return measure()
        except DataError as error:
            notes.append(str(error))
            return None

    few = max(20, config.resamples // 2)
    beyond = tried(lambda: fad_infinity_interval(features.vectors, real.vectors, config.seed, few))
    if len(features.indices) == 0:
        notes.append("not one of its clips is sound, see the degenerate ones")
    both = np.intersect1d(features.indices, real.indices)
    ours, theirs = features.at(both), real.at(both)
    return {
        "clips": len(features.indices),
        "fad": tried(lambda: fad_interval(features.vectors, real.vectors, config.seed, config.resamples)),
        "fad_infinity": beyond[0] if beyond else None,
        "fad_points": list(beyond[1].points) if beyond else None,
        "kad": tried(lambda: kad(features.vectors, real.vectors, config.seed, config.resamples)),
        "clap": _clap(evaluation, features, prompts),
        "labels": {
            question: asdict(label_divergence(theirs.classes[question], ours.classes[question], config.seed))
            for question in (ours.classes if len(both) else ())
        },
        "notes": notes,
    }


def count_degenerate(health: Floats, limits: DegenerateThresholds) -> dict[str, int]:
    """How many clips have each kind of fault, and any."""
    kinds = [problems(ClipHealth(*row), limits) for row in health.tolist()]
    counted = Counter(kind for labels in kinds for kind in labels)
    return {"any": sum(bool(labels) for labels in kinds), **{kind: counted[kind] for kind in KINDS}}


def worst_clips(evaluation: Evaluator, features: ClipFeatures, real: ClipFeatures) -> list[dict[str, Any]]:
    """The clips that lie furthest from the reference by themselves; none where that cannot be told."""
    try:
        far = fad_by_clip(features.vectors, real.vectors)
    except DataError:
        return []
    indices = [(int(features.indices[n]), float(far[n])) for n in np.argsort(far)[::-1][:NUM_WORST_CLIPS]]
    return [{"clip": clip, "fad": value, "prompt": evaluation.prompts([clip])[0]} for clip, value in indices]


def provenance_of(evaluation: Evaluator, real: ClipFeatures) -> dict[str, Any]:
    """What a figure must not be quoted without."""
    config, record = evaluation.config, evaluation.context.record
    return {
        **evaluation.reference.provenance,
        "real clips": len(real.indices),
        "done to them": dict(real.provenance),
        "clips a model": config.clips,
        "seconds a clip": config.seconds,
        "embedding": {**config.embedding.model_dump(), **evaluation.embedder.facts, "D": real.vectors.dimension},
        "CLAP score by": {"model": config.clap, **evaluation.clap.facts},
        "classes by": None if evaluation.tagger is None else {"model": config.tagger, **evaluation.tagger.facts},
        "sampling": evaluation.settings.__dict__,
        "seed": config.seed,
        "resamples": config.resamples,
        "limits": config.degenerate.model_dump(),
        "run": record.id,
        "versions": record.versions,
        "machine": f"{platform.machine()}, {platform.system()}, {evaluation.context.device}",
    }


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """A voice's figures as the run's metrics show them."""

    def value(name: str) -> Any:
        one = results.get(name)
        return one["value"] if isinstance(one, dict) and "value" in one else None

    agreement = results.get("agreement") or {}
    return {
        **{name: value(name) for name in ("fad", "fad_infinity", "kad")},
        "clap": results["clap"]["score"]["value"],
        "clap_shuffled": results["clap"]["shuffled"],
        "kl": agreement.get("forward", {}).get("value"),
        "degenerate": results.get("degenerate", {}).get("any"),
        "bytes": results.get("bytes"),
        "real_time_factor": (results.get("cost") or {}).get("real_time_factor"),
    }


def _clap(evaluation: Evaluator, features: ClipFeatures, prompts: Floats) -> dict[str, Any]:
    if len(features.indices) == 0:
        return {"score": Interval(np.nan), "shuffled": None, "p_shuffled": None}
    return clap_score(features.clap, prompts[features.indices], evaluation.config.seed).facts()


def _clip_scores(evaluation: Evaluator, features: ClipFeatures, prompts: Floats) -> Floats:
    """The CLAP score of every clip, NaN where it was not kept."""
    scores = np.full(len(prompts), np.nan)
    if len(features.indices):
        scores[features.indices] = clap_score(
            features.clap, prompts[features.indices], evaluation.config.seed, shuffles=1
        ).by_clip
    return scores


def _agreement(evaluation: Evaluator, model_id: str) -> dict[str, Any] | None:
    groups = chunk_ranges(agreement_clips(evaluation.config), AGREEMENT_GROUP)
    if not groups:
        return None
    parts = [evaluation.agreement(model_id, clips) for clips in groups]
    seed = evaluation.config.seed
    result: dict[str, Any] = {"clips": sum(len(part["forward"]) for part in parts)}
    for name in ("forward", "reverse", "top_1", "with_text"):
        values = _stack(parts, name)
        result[name] = mean_interval(values.mean(axis=1), seed)
        result[f"{name}_by_codebook"] = values.mean(axis=0).tolist()
    for name in ("surprise", "variety"):
        result[name] = mean_interval(_stack(parts, name), seed)
    return result


def _audio_samples(evaluation: Evaluator, names: dict[str, str]) -> list[tuple[str, list[AudioSample]]]:
    """For the first prompts, the clips of everybody."""
    clips, rate = range(min(evaluation.config.num_audio_samples, evaluation.config.clips)), evaluation.embedder.rate
    samples: list[tuple[str, list[AudioSample]]] = [(prompt, []) for prompt in evaluation.prompts(clips)]
    for clip in clips:
        try:
            wave = evaluation.reference.wave(clip, rate).wave
            samples[clip][1].append(AudioSample(REAL, wave, rate, encode_flac(wave, rate)))
        except DataError as error:
            print(f"skipped: {error}", flush=True)
    for model_id, name in names.items():
        model_rate = evaluation.facts(model_id).rate
        for clip, played in enumerate(evaluation.generated(model_id, clips)):
            wave = played["wave"].astype(np.float32) / 32767
            samples[clip][1].append(AudioSample(name, wave, model_rate, encode_flac(wave, model_rate)))
    return samples
