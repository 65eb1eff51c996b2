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

from jobs.evaluation import (
    AGREEMENT_GROUP,
    REAL,
    RECONSTRUCTED,
    Evaluator,
    agreement_clips,
    judged,
    label,
    labels,
    pieces,
)
from jobs.origins import curves, sensitivities
from tinymusician.data.shards import Arrays
from tinymusician.errors import DataError
from tinymusician.evaluate.audio import encode_flac
from tinymusician.evaluate.clap_score import clap_score
from tinymusician.evaluate.frechet import fad_by_clip, fad_infinity_interval, fad_interval
from tinymusician.evaluate.guards import KINDS, ClipHealth, problems
from tinymusician.evaluate.intervals import Interval, as_json, difference, mean_interval
from tinymusician.evaluate.kernel import kad
from tinymusician.evaluate.labels import label_divergence
from tinymusician.evaluate.report import AudioSample, html_report, markdown_report
from tinymusician.evaluate.vectors import ClipEmbeddings, Floats, Indices
from tinymusician.recipe import DegenerateThresholds

WORST = 5


@dataclass(frozen=True)
class ClipFeatures:
    """Everything that was heard of a voice's clips; `places` are the numbers of those that are sound."""

    places: Indices
    vectors: ClipEmbeddings
    clap: ClipEmbeddings
    classes: dict[str, Floats]
    health: Floats | None
    provenance: Counter[str]

    def at(self, places: Indices) -> ClipFeatures:
        """The clips of these numbers alone."""
        index = np.searchsorted(self.places, places)
        classes = {question: values[index] for question, values in self.classes.items()}
        return ClipFeatures(places, self.vectors.chosen(index), self.clap.chosen(index), classes, None, self.provenance)


def write_report(evaluation: Evaluator) -> None:
    """Figures, report.html, report.md and report.json in the run's folder, and the run's result."""
    run, asked = evaluation.context.run, evaluation.asked
    real = heard(evaluation, REAL)
    prompts = evaluation.clap.text(evaluation.prompts(range(asked.clips)))
    voices = judged(evaluation.recipe)
    names = labels(voices)
    found: dict[str, dict[str, Any]] = {REAL: {"clap": _clap(evaluation, real, prompts)}}
    found[RECONSTRUCTED] = compared(evaluation, heard(evaluation, RECONSTRUCTED), real, prompts)
    scores: dict[str, Floats] = {}
    far: dict[str, Any] = {}
    for voice in voices:
        print(f"figures of {names[voice]}", flush=True)
        one = heard(evaluation, voice)
        found[names[voice]] = figures(evaluation, voice, one, real, prompts)
        scores[names[voice]] = _by_clip(evaluation, one, prompts)
        far[names[voice]] = worst(evaluation, one, real)
    for name, own in scores.items():
        found[name]["clap_less_first"] = less(own, scores[names[voices[0]]], asked.seed)
        found[name]["clap_by_clip"] = own.round(5).tolist()
    content = as_json({"models": found, "how": how(evaluation, real), "worst": far})
    listened, store = _listened(evaluation, names), run.store
    page = html_report(evaluation.recipe.name, content, listened, curves(store, names), sensitivities(store, names))
    run.store.put(run.key("report.json"), json.dumps(content, indent=2, ensure_ascii=False).encode())
    run.store.put(run.key("report.md"), markdown_report(evaluation.recipe.name, content).encode())
    run.store.put(run.key("report.html"), page.encode())
    result = {"artifact": None, "metrics": {name: summary(one) for name, one in content["models"].items()}}
    run.store.put(run.key("result.json"), json.dumps(result).encode())


def heard(evaluation: Evaluator, voice: str, clips: int | None = None) -> ClipFeatures:
    """All groups of a voice's clips (the first `clips`) together, without those that cannot be read or are no numbers.

    Raises:
        DataError: none of the real clips is left, and so nothing can be compared with them.
    """
    asked = evaluation.asked
    listen = partial(evaluation.heard, voice)
    if voice in (REAL, RECONSTRUCTED):
        listen = partial(evaluation.heard_real, coded=voice == RECONSTRUCTED)
    parts = [listen(group) for group in pieces(clips or asked.clips, asked.batch)]
    kept = np.concatenate([part["kept"] for part in parts])
    places = np.flatnonzero(kept)
    if len(places) == 0 and voice in (REAL, RECONSTRUCTED):
        raise DataError(f"evaluation: not one clip of {label(voice)} is sound")
    told = Counter[str]()
    for part in parts:
        told.update(json.loads(part["told"].tobytes()) if "told" in part else {})
    vectors = _joined(parts, "vectors", kept)
    questions = [name for name in parts[0] if name.startswith("classes/")]
    classes = {name.removeprefix("classes/"): _stacked(parts, name)[kept] for name in questions}
    health = _stacked(parts, "health") if "health" in parts[0] else None
    clap = _joined(parts, "clap", kept) if "clap" in parts[0] else vectors
    return ClipFeatures(places, vectors, clap, classes, health, told)


def less(own: Floats, first: Floats, seed: int) -> Interval | None:
    """The mean difference of the CLAP scores of clips that both have; None if there are none."""
    both = np.isfinite(own) & np.isfinite(first)
    return difference(own[both], first[both], seed) if both.any() else None


def _stacked(parts: list[Arrays], name: str) -> Floats:
    return np.concatenate([part[name] for part in parts])


def _joined(parts: list[Arrays], name: str, kept: Any) -> ClipEmbeddings:
    """The vectors of the kept clips, numbered through."""
    clips = [part[name][part[f"{name}_owners"] == clip] for part in parts for clip in range(int(part["kept"].shape[0]))]
    sound = [clip for clip, good in zip(clips, kept, strict=True) if good]
    return ClipEmbeddings.of(sound) if sound else ClipEmbeddings(parts[0][name][:0], np.zeros(0, np.int64))


def figures(
    evaluation: Evaluator, voice: str, own: ClipFeatures, real: ClipFeatures, prompts: Floats
) -> dict[str, Any]:
    """Everything that is said of one voice."""
    assert own.health is not None
    return {
        **compared(evaluation, own, real, prompts),
        "degenerate": degenerate(own.health, evaluation.asked.degeneration),
        "agreement": _agreement(evaluation, voice),
        "cost": evaluation.cost(voice) if evaluation.asked.cost_runs else None,
        "bytes": evaluation.known(voice).size,
    }


def compared(evaluation: Evaluator, own: ClipFeatures, real: ClipFeatures, prompts: Floats) -> dict[str, Any]:
    """How clips compare with the real ones and their captions; what cannot be told is None, and why is in `notes`."""
    asked = evaluation.asked
    notes: list[str] = []

    def tried(measure: Callable[[], Any]) -> Any:
        try:
            return measure()
        except DataError as error:
            notes.append(str(error))
            return None

    few = max(20, asked.resamples // 2)
    beyond = tried(lambda: fad_infinity_interval(own.vectors, real.vectors, asked.seed, few))
    if len(own.places) == 0:
        notes.append("not one of its clips is sound, see the degenerate ones")
    both = np.intersect1d(own.places, real.places)
    ours, theirs = own.at(both), real.at(both)
    return {
        "clips": len(own.places),
        "fad": tried(lambda: fad_interval(own.vectors, real.vectors, asked.seed, asked.resamples)),
        "fad_infinity": beyond[0] if beyond else None,
        "fad_points": list(beyond[1].points) if beyond else None,
        "kad": tried(lambda: kad(own.vectors, real.vectors, asked.seed, asked.resamples)),
        "clap": _clap(evaluation, own, prompts),
        "labels": {
            question: asdict(label_divergence(theirs.classes[question], ours.classes[question], asked.seed))
            for question in (ours.classes if len(both) else ())
        },
        "notes": notes,
    }


def degenerate(health: Floats, limits: DegenerateThresholds) -> dict[str, int]:
    """How many clips have each kind of fault, and any."""
    kinds = [problems(ClipHealth(*row), limits) for row in health.tolist()]
    counted = Counter(kind for found in kinds for kind in found)
    return {"any": sum(bool(found) for found in kinds), **{kind: counted[kind] for kind in KINDS}}


def worst(evaluation: Evaluator, own: ClipFeatures, real: ClipFeatures) -> list[dict[str, Any]]:
    """The clips that lie furthest from the reference by themselves; none where that cannot be told."""
    try:
        far = fad_by_clip(own.vectors, real.vectors)
    except DataError:
        return []
    places = [(int(own.places[n]), float(far[n])) for n in np.argsort(far)[::-1][:WORST]]
    return [{"clip": clip, "fad": value, "prompt": evaluation.prompts([clip])[0]} for clip, value in places]


def how(evaluation: Evaluator, real: ClipFeatures) -> dict[str, Any]:
    """What a figure must not be quoted without."""
    asked, record = evaluation.asked, evaluation.context.record
    return {
        **evaluation.reference.provenance,
        "real clips": len(real.places),
        "done to them": dict(real.provenance),
        "clips a model": asked.clips,
        "seconds a clip": asked.seconds,
        "embedding": {**asked.embedding.model_dump(), **evaluation.embedder.facts, "D": real.vectors.dimension},
        "CLAP score by": {"model": asked.clap, **evaluation.clap.facts},
        "classes by": None if evaluation.tagger is None else {"model": asked.tagger, **evaluation.tagger.facts},
        "sampling": evaluation.settings.__dict__,
        "seed": asked.seed,
        "resamples": asked.resamples,
        "limits": asked.degeneration.model_dump(),
        "run": record.id,
        "versions": record.versions,
        "machine": f"{platform.machine()}, {platform.system()}, {evaluation.context.device}",
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """A voice's figures as the run's metrics show them."""

    def value(name: str) -> Any:
        one = found.get(name)
        return one["value"] if isinstance(one, dict) and "value" in one else None

    agreement = found.get("agreement") or {}
    return {
        **{name: value(name) for name in ("fad", "fad_infinity", "kad")},
        "clap": found["clap"]["score"]["value"],
        "clap_shuffled": found["clap"]["shuffled"],
        "kl": agreement.get("forward", {}).get("value"),
        "degenerate": found.get("degenerate", {}).get("any"),
        "bytes": found.get("bytes"),
        "real_time_factor": (found.get("cost") or {}).get("real_time_factor"),
    }


def _clap(evaluation: Evaluator, own: ClipFeatures, prompts: Floats) -> dict[str, Any]:
    if len(own.places) == 0:
        return {"score": Interval(np.nan), "shuffled": None, "p_shuffled": None}
    return clap_score(own.clap, prompts[own.places], evaluation.asked.seed).facts()


def _by_clip(evaluation: Evaluator, own: ClipFeatures, prompts: Floats) -> Floats:
    """The CLAP score of every clip, NaN where it was not kept."""
    scores = np.full(len(prompts), np.nan)
    if len(own.places):
        scores[own.places] = clap_score(own.clap, prompts[own.places], evaluation.asked.seed, shuffles=1).by_clip
    return scores


def _agreement(evaluation: Evaluator, voice: str) -> dict[str, Any] | None:
    groups = pieces(agreement_clips(evaluation.asked), AGREEMENT_GROUP)
    if not groups:
        return None
    parts = [evaluation.agreed(voice, clips) for clips in groups]
    seed = evaluation.asked.seed
    found: dict[str, Any] = {"clips": sum(len(part["forward"]) for part in parts)}
    for name in ("forward", "reverse", "top_1", "with_text"):
        values = _stacked(parts, name)
        found[name] = mean_interval(values.mean(axis=1), seed)
        found[f"{name}_by_codebook"] = values.mean(axis=0).tolist()
    for name in ("surprise", "variety"):
        found[name] = mean_interval(_stacked(parts, name), seed)
    return found


def _listened(evaluation: Evaluator, names: dict[str, str]) -> list[tuple[str, list[AudioSample]]]:
    """For the first prompts, the clips of everybody."""
    clips, rate = range(min(evaluation.asked.listen, evaluation.asked.clips)), evaluation.embedder.rate
    found: list[tuple[str, list[AudioSample]]] = [(prompt, []) for prompt in evaluation.prompts(clips)]
    for clip in clips:
        try:
            wave = evaluation.reference.wave(clip, rate).wave
            found[clip][1].append(AudioSample(REAL, wave, rate, encode_flac(wave, rate)))
        except DataError as error:
            print(f"skipped: {error}", flush=True)
    for voice, name in names.items():
        own = evaluation.known(voice).rate
        for clip, played in enumerate(evaluation.played(voice, clips)):
            wave = played["wave"].astype(np.float32) / 32767
            found[clip][1].append(AudioSample(name, wave, own, encode_flac(wave, own)))
    return found
