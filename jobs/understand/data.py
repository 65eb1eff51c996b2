"""What the stages of an understand job read: clips, spectra, labels, questions, tokenizer. All follow from the recipe.

Each node renders and computes them once, in its cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.worker.context import WorkerContext
from tinymusician.data.splits import Split
from tinymusician.errors import RecipeError
from tinymusician.recipe import Recipe, UnderstandConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tinymusician.house_band.corpus import RenderedSplit
    from tinymusician.models.audio_encoder import AudioEncoder
    from tinymusician.models.audio_lm import AudioLM, AudioLMShape
    from tinymusician.models.pretrained_lm import PretrainedLM
    from tinymusician.models.protocols import Codec
    from tinymusician.models.spectral_front_end import FrontEndConfig
    from tinymusician.understand.answer_task import Features
    from tinymusician.understand.attribute_task import LabelledSpectra
    from tinymusician.understand.questions import Question
    from tinymusician.understand.spectra import Spectra, Waves

_SCALE_CLIPS = 200


def understand_config(recipe: Recipe) -> UnderstandConfig:
    """The recipe's section.

    Raises:
        RecipeError: it has none.
    """
    if recipe.understand is None:
        raise RecipeError(f"recipe {recipe.name}: has no `understand` section; band-mu and tinymu have one")
    return recipe.understand


class UnderstandData:
    """The data of a run, read and computed when they are first used."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self.config = understand_config(context.recipe)
        self.seed = context.recipe.training.seed
        self._splits: dict[Split, RenderedSplit] = {}
        self._spectra: dict[tuple[Split, float], Spectra] = {}
        self._questions: dict[Split, list[Question]] = {}

    @property
    def folder(self) -> Path:
        """The folder of rendered clips and their spectra on this node."""
        return self._context.cache / "corpus"

    def split(self, name: Split) -> RenderedSplit:
        """The clips of a split, in all twelve keys."""
        from tinymusician.house_band.corpus import SEED, load_split
        from tinymusician.house_band.synth import EVERY_KEY
        from tinymusician.house_band.tunes import TUNES, load_tunes

        if name not in self._splits:
            tunes, progress = load_tunes(self.folder / TUNES), self._progress(f"{name} clips")
            self._splits[name] = load_split(self.folder, tunes, name, self._count(name), SEED, EVERY_KEY, progress)
        return self._splits[name]

    @cached_property
    def teacher(self) -> AudioLM | None:
        """The model whose answers are learnt, if the recipe names one."""
        from tinymusician.models.audio_lm_files import load_audio_lm, model_folder

        return None if self.config.teacher is None else load_audio_lm(model_folder(self.config.teacher.model))

    @property
    def licence(self) -> str:
        """The licence of the trained model, with those of the models that it contains."""
        from tinymusician.models.licence import audio_lm_licence

        config = self.config
        teacher = config.teacher.model if config.teacher is not None else None
        names = (config.encoder.model, config.language_model.model, teacher)
        return audio_lm_licence([name for name in names if name is not None])

    @cached_property
    def given_lm(self) -> PretrainedLM | None:
        """The trained language model that the recipe names, if any."""
        from tinymusician.models.pretrained_lm import load_language_model

        name = self.config.language_model.model
        return None if name is None else load_language_model(name)

    @cached_property
    def given_encoder(self) -> AudioEncoder | None:
        """The teacher's encoder, or the one that the recipe names; None if it is to be trained."""
        from tinymusician.models.audio_lm_files import load_encoder

        if self.teacher is not None:
            return self.teacher.audio_encoder
        return None if self.config.encoder.model is None else load_encoder(self.config.encoder.model)

    @property
    def tunes_encoder(self) -> bool:
        """Whether an encoder is fine-tuned: one that is trained here, or a given one of which the recipe wants it."""
        config = self.config.pretrain
        return config.tune_steps > 0 and (self.given_encoder is None or config.tune_given)

    @cached_property
    def front_end(self) -> FrontEndConfig:
        """That of a given encoder; else MATPAC++'s, or one with a pitch channel and the scales of this corpus."""
        from tinymusician.models.spectral_front_end import FrontEndConfig
        from tinymusician.understand.spectra import measure_scales

        if self.given_encoder is not None:
            return self.given_encoder.shape.front_end
        if not self.config.encoder.pitch_channel:
            return FrontEndConfig()
        return measure_scales(self.split("validation").audio(slice(0, _SCALE_CLIPS)))

    @cached_property
    def shape(self) -> AudioLMShape:
        """The shapes of all components."""
        from jobs.understand.shapes import audio_lm_shape, student_shape

        shape = audio_lm_shape(self.config, self.front_end)
        if self.given_encoder is not None:
            shape = replace(shape, audio_encoder=self.given_encoder.shape)
        if self.teacher is not None:
            shape = replace(shape, lm=student_shape(self.teacher.shape.lm, shape.lm))
        return shape if self.given_lm is None else replace(shape, lm=self.given_lm.shape)

    def spectra(self, name: Split) -> Spectra:
        """The normalized spectra of a split; a share of the training clips has passed through the recipe's codec."""
        return self._clips_spectra(name, self._coded_share(name))

    def features(self, name: Split, encoder: AudioEncoder) -> Features:
        """The encoder's vectors of the same clips."""
        return self._clips_features(name, encoder, self._coded_share(name))

    def coded_features(self, name: Split, encoder: AudioEncoder) -> Features:
        """The encoder's vectors of a split of which all clips have passed through the codec."""
        return self._clips_features(name, encoder, 1.0)

    def _progress(self, stage: str) -> Callable[[int, int], None]:
        """Reports what is done of a part of the data, as often as its percentage changes."""
        last = -1

        def report(done: int, total: int) -> None:
            nonlocal last
            if (percentage := done * 100 // total) != last:
                self._context.run.report_progress(stage, done, total)
                last = percentage

        return report

    def _coded_share(self, name: Split) -> float:
        return self.config.questions.coded_share if name == "train" and self.config.questions.codec else 0.0

    def _clips_spectra(self, name: Split, coded_share: float) -> Spectra:
        from tinymusician.understand.coded_clips import with_codec
        from tinymusician.understand.spectra import load_spectra

        if (name, coded_share) not in self._spectra:
            split = self.split(name)
            waves: Waves = split.audio
            if coded_share:
                is_coded = np.random.default_rng(self.seed).random(len(split.clips)) < coded_share
                waves = with_codec(waves, is_coded, self._codec)
            source, samples = self._source(name, coded_share), split.samples.shape[1]
            self._spectra[name, coded_share] = load_spectra(
                self.folder,
                source,
                waves,
                len(split.clips),
                samples,
                self.front_end,
                self._progress(f"{name} spectra"),
            )
        return self._spectra[name, coded_share]

    def _clips_features(self, name: Split, encoder: AudioEncoder, coded_share: float) -> Features:
        from tinymusician.understand.features import load_features

        source = self._source(name, coded_share)
        spectra = self._clips_spectra(name, coded_share)
        return load_features(self.folder, source, encoder, spectra, self._progress(f"{name} features"))

    def _source(self, name: Split, coded_share: float) -> str:
        """Identifies the clips of a split of which a share has passed through the codec."""
        from tinymusician.models.prune_layers import weights_digest

        digest = self.split(name).digest
        if not coded_share:
            return digest
        return f"{digest}-{weights_digest(self._codec)[:8]}-{coded_share:g}-{self.seed}"

    @cached_property
    def _codec(self) -> Codec:
        from tinymusician.understand.coded_clips import load_codec

        assert self.config.questions.codec is not None
        return load_codec(self.config.questions.codec)

    def unhearable_features(self, encoder: AudioEncoder) -> Features:
        """The encoder's vectors of silence and noise, as long as the clips."""
        from tinymusician.understand.features import unhearable_features

        return unhearable_features(encoder, self.clip_samples, self.seed)

    @property
    def clip_samples(self) -> int:
        """The length of a clip in samples."""
        return int(self.split("validation").samples.shape[1])

    def labelled(self, name: Split) -> LabelledSpectra:
        """The spectra of a split with the classes of its attributes and time steps."""
        from tinymusician.house_band.skill_labels import attribute_labels, onset_labels, step_labels
        from tinymusician.models.audio_encoder import PATCH
        from tinymusician.understand.attribute_task import LabelledSpectra

        clips, spectra = self.split(name).clips, self.spectra(name)
        steps = -(-spectra.shape[-1] // PATCH)
        return LabelledSpectra(spectra, attribute_labels(clips), step_labels(clips, steps), onset_labels(clips, steps))

    def questions(self, name: Split) -> list[Question]:
        """The questions of training; of the other splits, the benchmark's hard questions."""
        if name not in self._questions:
            self._questions[name] = self._generate_questions(name)
        return self._questions[name]

    def _generate_questions(self, name: Split) -> list[Question]:
        from tinymusician.house_band.skill_questions import QuestionCounts, hard_questions, training_questions

        config, clips = self.config.questions, self.split(name).clips
        if name != "train":
            return hard_questions(clips, config.benchmark_groups, self.seed, has_new_phrasings=name == "test")
        counts = QuestionCounts(
            config.choice_groups, config.yes_no_pairs, config.open_questions, config.captions, config.unanswerable
        )
        return training_questions(clips, counts, self.seed)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The teacher's or the given language model's tokenizer, or one that is learnt from the training questions."""
        from tokenizers import Tokenizer

        from tinymusician.models.audio_lm_files import TOKENIZER, model_folder
        from tinymusician.understand.tokenizer import train_tokenizer

        if self.config.teacher is not None:
            return Tokenizer.from_file(str(model_folder(self.config.teacher.model) / TOKENIZER))
        if self.given_lm is not None:
            return self.given_lm.tokenizer
        questions = self.questions("train")
        texts = [text for question in questions for text in (question.prompt, f" {question.target}")]
        return train_tokenizer(texts, self.config.language_model.vocabulary)

    def _count(self, name: Split) -> int:
        config = self.config.questions
        return {"train": config.train_clips, "validation": config.validation_clips, "test": config.test_clips}[name]
