"""The benchmark of an understand job: a linear probe of the encoder, then the hard questions with all controls."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.understand.data import UnderstandData
from jobs.understand.stages import ANSWERS, TEXT_ONLY, trained_encoder, trained_model
from jobs.worker.context import WorkerContext
from tinymusician.house_band.skill_questions import PHRASINGS
from tinymusician.house_band.skills import SKILLS
from tinymusician.understand.answering import TorchAnswerer
from tinymusician.understand.benchmark import (
    BenchmarkResult,
    SystemScore,
    majority_choices,
    other_tunes,
    score_choices,
    score_model,
    score_probabilities,
    shuffled_options,
)
from tinymusician.understand.features import noise_features, silence_features
from tinymusician.understand.linear_probe import probe
from tinymusician.understand.questions import write_questions

if TYPE_CHECKING:
    from tinymusician.models.audio_encoder import AudioEncoder
    from tinymusician.understand.answer_task import Features
    from tinymusician.understand.questions import Question

_NOISE_SEED = 1_000_000
"""Added to the seed: the noise of the benchmark is not that of the training."""
PROBED = ("instrument", "tempo", "key", "mode")


def run_probe(context: WorkerContext, data: UnderstandData) -> dict[str, float]:
    """The accuracy of a linear probe of the frozen encoder's mean vectors, by attribute, on test clips."""
    encoder = trained_encoder(context, data)
    sets = {}
    for name in ("train", "validation", "test"):
        means = np.asarray(data.features(name, encoder)).mean(1, dtype=np.float32)
        sets[name] = means, data.labelled(name).labels
    accuracies = {}
    for attribute in PROBED:
        index = list(SKILLS).index(attribute)
        parts = [(means, labels[:, index]) for means, labels in sets.values()]
        accuracies[attribute] = probe(parts[0], parts[1], parts[2]).accuracy
    return accuracies


def run_benchmark(context: WorkerContext, data: UnderstandData) -> BenchmarkResult:
    """The model's score on hard questions, and those of all controls."""
    questions, seed = data.questions("test"), data.seed
    model = trained_model(context, data, ANSWERS)
    features = data.features("test", model.audio_encoder)
    clip_features = _of(features, [question.clip for question in questions])
    answerer = TorchAnswerer(model, data.tokenizer, context.device)
    held_out = frozenset(phrasing.held_out for phrasing in PHRASINGS.values())
    score = score_model(context.recipe.name, questions, answerer, clip_features, held_out)
    coded = _coded(data, model.audio_encoder, answerer, questions)
    encoder, count, samples = model.audio_encoder, len(questions), data.clip_samples
    inputs = {
        "no audio": None,
        "silence": silence_features(encoder, count, samples).astype(np.float32),
        "noise": noise_features(encoder, count, samples, seed + _NOISE_SEED).astype(np.float32),
        "another tune's audio": _of(features, other_tunes(questions, seed)),
    }
    mixed = shuffled_options(questions, seed)
    controls = [
        score_probabilities(name, mixed, answerer.probabilities(given, mixed)) for name, given in inputs.items()
    ]
    majority = majority_choices(mixed, data.questions("train"))
    controls.append(score_choices("most frequent answer", mixed, majority))
    controls += _text_only(context, data, mixed)
    with tempfile.TemporaryDirectory() as folder:
        digest = write_questions(Path(folder) / "hard.jsonl", questions)
    return BenchmarkResult(
        benchmark="hard",
        digest=digest,
        clips=len({question.clip for question in questions}),
        tunes=len({question.tune for question in questions}),
        model=score,
        controls=tuple(controls),
        coded=coded,
    )


def _coded(
    data: UnderstandData, encoder: AudioEncoder, answerer: TorchAnswerer, questions: list[Question]
) -> SystemScore | None:
    """The score of the same questions about the same clips after the recipe's codec, if it names one."""
    if data.config.questions.codec is None:
        return None
    features = _of(data.coded_features("test", encoder), [question.clip for question in questions])
    return score_probabilities("clips after the codec", questions, answerer.probabilities(features, questions))


def _text_only(context: WorkerContext, data: UnderstandData, questions: list[Question]) -> list[SystemScore]:
    """The score of the model that was trained without audio, if there is one."""
    if not data.config.train.text_only_steps:
        return []
    answerer = TorchAnswerer(trained_model(context, data, TEXT_ONLY), data.tokenizer, context.device)
    return [score_probabilities("text-only model", questions, answerer.probabilities(None, questions))]


def _of(features: Features, clips: list[int]) -> np.ndarray:
    return np.asarray(features[clips], np.float32)
