"""The benchmark of an understand job: a linear probe of the encoder, then questions with all controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jobs.understand.data import UnderstandData
from jobs.understand.stages import ANSWERS, TEXT_ONLY, encoder_stages, trained_model
from jobs.worker.context import WorkerContext
from tinymusician.house_band.mucho_questions import mucho_questions
from tinymusician.house_band.question_texts import PHRASINGS
from tinymusician.house_band.skill_questions import VERSION, attribute_questions
from tinymusician.house_band.skills import SKILLS
from tinymusician.understand.answering import Answerer, FinerAnswerer, TorchAnswerer
from tinymusician.understand.benchmark import (
    BenchmarkResult,
    EncoderProbe,
    SystemScore,
    majority_choices,
    mismatched_clips,
    score_choices,
    score_model,
    score_probabilities,
    shuffle_options,
)
from tinymusician.understand.features import mean_vectors, noise_features, silence_features
from tinymusician.understand.linear_probe import majority_accuracy, probe
from tinymusician.understand.questions import questions_digest

if TYPE_CHECKING:
    from tinymusician.models.audio_lm import AudioLM
    from tinymusician.understand.answer_task import Features
    from tinymusician.understand.questions import Question

_NOISE_SEED = 1_000_000
"""Added to the seed: the noise of the benchmark is not that of the training."""
_PROBE_CLIPS = 6000
"""At most so many clips of a split are probed."""
PROBED = ("instrument", "tempo", "key", "mode")


def run_probes(context: WorkerContext, data: UnderstandData) -> tuple[EncoderProbe, ...]:
    """Of each attribute the most frequent class, then linear probes of the encoder at every stage of its training."""
    columns = {attribute: list(SKILLS).index(attribute) for attribute in PROBED}
    sets = [data.labelled(name) for name in ("train", "validation", "test")]
    labels = [each.labels[:_PROBE_CLIPS] for each in sets]
    majority = {name: majority_accuracy(labels[0][:, column], labels[2][:, column]) for name, column in columns.items()}
    probes = [EncoderProbe(encoder="most frequent class", accuracies=majority)]
    for name, encoder in encoder_stages(context, data).items():
        means = [mean_vectors(encoder, each.spectra[:_PROBE_CLIPS]) for each in sets]
        accuracies = {}
        for attribute, column in columns.items():
            train, validation, test = ((x, y[:, column]) for x, y in zip(means, labels, strict=True))
            accuracies[attribute] = probe(train, validation, test).accuracy
        probes.append(EncoderProbe(encoder=name, accuracies=accuracies))
    return tuple(probes)


def run_benchmark(context: WorkerContext, data: UnderstandData) -> BenchmarkResult:
    """The scores on the hard questions, and on those with MuChoMusic's distractors."""
    benchmark, groups = _Benchmark(context, data), data.config.questions.benchmark_groups
    hard = benchmark.score("hard", data.questions("test"))
    mucho = benchmark.score("mucho", mucho_questions(data.split("test").clips, groups, data.seed))
    return hard.model_copy(
        update={"reconstructed": benchmark.score_reconstructed(data.questions("test")), "others": (mucho,)}
    )


class _Benchmark:
    """Scores the trained model and its controls."""

    def __init__(self, context: WorkerContext, data: UnderstandData) -> None:
        self._context, self._data = context, data
        model = trained_model(context, data, ANSWERS)
        self._encoder, self._answerer = model.audio_encoder, _answerer(context, data, model)
        self._features = data.features("test", self._encoder)

    def score(self, name: str, questions: list[Question]) -> BenchmarkResult:
        """The model's score on some questions, and those of all controls."""
        clips = [question.clip for question in questions]
        held_out = frozenset(text for phrasing in PHRASINGS.values() for text in phrasing.held_out)
        features = _of(self._features, clips)
        return BenchmarkResult(
            benchmark=name,
            version=VERSION,
            digest=questions_digest(questions),
            clips=len(set(clips)),
            tunes=len({question.tune for question in questions}),
            model=score_model(self._context.recipe.name, questions, self._answerer, features, held_out),
            controls=tuple(self._controls(questions)),
        )

    def score_reconstructed(self, questions: list[Question]) -> SystemScore | None:
        """The score of the same questions about the same clips after the recipe's codec, if it names one."""
        if self._data.config.questions.codec is None:
            return None
        features = _of(
            self._data.reconstructed_features("test", self._encoder), [question.clip for question in questions]
        )
        return score_probabilities(
            "clips after the codec", questions, self._answerer.probabilities(features, questions)
        )

    def _controls(self, questions: list[Question]) -> list[SystemScore]:
        """Controls that get no audio, or none that helps; each question has its options in an order of its own."""
        count, samples, seed = len(questions), self._data.clip_samples, self._data.seed
        noise = noise_features(self._encoder, count, samples, seed + _NOISE_SEED)
        inputs = {
            "no audio": None,
            "silence": silence_features(self._encoder, count, samples).astype(np.float32),
            "noise": noise.astype(np.float32),
            "another tune's audio": _of(self._features, mismatched_clips(questions, seed)),
        }
        mixed, answerer = shuffle_options(questions, seed), self._answerer
        controls = [
            score_probabilities(name, mixed, answerer.probabilities(given, mixed)) for name, given in inputs.items()
        ]
        majority = majority_choices(mixed, self._data.questions("train"))
        return [*controls, score_choices("most frequent answer", mixed, majority), *self._text_only(mixed)]

    def _text_only(self, questions: list[Question]) -> list[SystemScore]:
        """The score of the model that was trained without audio, if there is one."""
        if not self._data.config.train.text_only_steps:
            return []
        model = trained_model(self._context, self._data, TEXT_ONLY)
        answerer = _answerer(self._context, self._data, model)
        return [score_probabilities("text-only model", questions, answerer.probabilities(None, questions))]


def _answerer(context: WorkerContext, data: UnderstandData, model: AudioLM) -> Answerer:
    """The model as bundles answer with it: the mode by the key."""
    return FinerAnswerer(TorchAnswerer(model, data.tokenizer, context.device), attribute_questions())


def _of(features: Features, clips: list[int]) -> np.ndarray:
    return np.asarray(features[clips], np.float32)
