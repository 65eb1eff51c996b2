"""What the stages of an understand job read: clips, spectra, labels, questions, tokenizer. All follow from the recipe.

Each node renders and computes them once, in its cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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


class AugmentationConfig(NamedTuple):
    """The shares of a split's clips that have passed through the codec, and that lack the highest frequencies."""

    reconstructed: float = 0.0
    band_limited: float = 0.0


class UnderstandData:
    """The data of a run, read and computed when they are first used."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self.config = understand_config(context.recipe)
        self.seed = context.recipe.training.seed
        self._splits: dict[Split, RenderedSplit] = {}
        self._spectra: dict[tuple[Split, AugmentationConfig], Spectra] = {}
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
    def pretrained_lm(self) -> PretrainedLM | None:
        """The trained language model that the recipe names, if any."""
        from tinymusician.models.pretrained_lm import load_language_model

        name = self.config.language_model.model
        return None if name is None else load_language_model(name)

    @cached_property
    def pretrained_encoder(self) -> AudioEncoder | None:
        """The teacher's encoder, or the one that the recipe names; None if it is to be trained."""
        from tinymusician.models.audio_lm_files import load_encoder

        if self.teacher is not None:
            return self.teacher.audio_encoder
        return None if self.config.encoder.model is None else load_encoder(self.config.encoder.model)

    @property
    def finetunes_encoder(self) -> bool:
        """Whether an encoder is fine-tuned: one that is trained here, or a given one of which the recipe wants it."""
        config = self.config.pretrain
        return config.finetune_steps > 0 and (self.pretrained_encoder is None or config.finetune_pretrained)

    @cached_property
    def front_end(self) -> FrontEndConfig:
        """That of a given encoder; else MATPAC++'s, or one with a pitch channel and the scales of this corpus."""
        from tinymusician.models.spectral_front_end import FrontEndConfig
        from tinymusician.understand.spectra import measure_scales

        if self.pretrained_encoder is not None:
            return self.pretrained_encoder.shape.front_end
        if not self.config.encoder.pitch_channel:
            return FrontEndConfig()
        return measure_scales(self.split("validation").audio(slice(0, _SCALE_CLIPS)))

    @cached_property
    def shape(self) -> AudioLMShape:
        """The shapes of all components."""
        from jobs.understand.shapes import audio_lm_shape, student_shape

        shape = audio_lm_shape(self.config, self.front_end)
        if self.pretrained_encoder is not None:
            shape = replace(shape, audio_encoder=self.pretrained_encoder.shape)
        if self.teacher is not None:
            shape = replace(shape, lm=student_shape(self.teacher.shape.lm, shape.lm))
        return shape if self.pretrained_lm is None else replace(shape, lm=self.pretrained_lm.shape)

    def spectra(self, name: Split) -> Spectra:
        """The normalized spectra of a split; shares of the training clips are augmentation."""
        return self._clips_spectra(name, self._alterations(name))

    def features(self, name: Split, encoder: AudioEncoder) -> Features:
        """The encoder's vectors of the same clips."""
        return self._clips_features(name, encoder, self._alterations(name))

    def reconstructed_features(self, name: Split, encoder: AudioEncoder) -> Features:
        """The encoder's vectors of a split of which all clips have passed through the codec."""
        return self._clips_features(name, encoder, AugmentationConfig(reconstructed=1.0))

    def _progress(self, stage: str) -> Callable[[int, int], None]:
        """Reports what is done of a part of the data, as often as its percentage changes."""
        last = -1

        def report(done: int, total: int) -> None:
            nonlocal last
            if (percentage := done * 100 // total) != last:
                self._context.run.report_progress(stage, done, total)
                last = percentage

        return report

    def _alterations(self, name: Split) -> AugmentationConfig:
        config = self.config.questions
        if name != "train":
            return AugmentationConfig()
        return AugmentationConfig(config.reconstructed_share if config.codec else 0.0, config.band_limited_share)

    def _clips_spectra(self, name: Split, augmentation: AugmentationConfig) -> Spectra:
        from tinymusician.understand.spectra import load_spectra

        if (name, augmentation) not in self._spectra:
            split = self.split(name)
            self._spectra[name, augmentation] = load_spectra(
                self.folder,
                self._source(name, augmentation),
                self._augment(split.audio, len(split.clips), augmentation),
                len(split.clips),
                split.samples.shape[1],
                self.front_end,
                self._progress(f"{name} spectra"),
            )
        return self._spectra[name, augmentation]

    def _augment(self, waves: Waves, count: int, augmentation: AugmentationConfig) -> Waves:
        """The clips, of which shares have passed through the codec, and lost their highest frequencies."""
        from tinymusician.understand.band_limited_clips import band_limited, random_rates
        from tinymusician.understand.reconstructed_clips import with_reconstructions

        if augmentation.reconstructed:
            is_reconstructed = np.random.default_rng(self.seed).random(count) < augmentation.reconstructed
            waves = with_reconstructions(waves, is_reconstructed, self._codec)
        if augmentation.band_limited:
            waves = band_limited(waves, random_rates(count, augmentation.band_limited, self.seed))
        return waves

    def _clips_features(self, name: Split, encoder: AudioEncoder, augmentation: AugmentationConfig) -> Features:
        from tinymusician.understand.features import load_features

        spectra = self._clips_spectra(name, augmentation)
        return load_features(
            self.folder, self._source(name, augmentation), encoder, spectra, self._progress(f"{name} features")
        )

    def _source(self, name: Split, augmentation: AugmentationConfig) -> str:
        """Identifies the clips of a split of which shares are augmentation."""
        from tinymusician.models.prune_layers import weights_digest

        parts = [self.split(name).digest]
        if augmentation.reconstructed:
            parts += [weights_digest(self._codec)[:8], f"{augmentation.reconstructed:g}", str(self.seed)]
        if augmentation.band_limited:
            parts.append(f"band{augmentation.band_limited:g}-{self.seed}")
        return "-".join(parts)

    @cached_property
    def _codec(self) -> Codec:
        from tinymusician.understand.reconstructed_clips import load_codec

        assert self.config.questions.codec is not None
        return load_codec(self.config.questions.codec)

    def no_music_features(self, encoder: AudioEncoder) -> Features:
        """The encoder's vectors of silence and noise, as long as the clips."""
        from tinymusician.understand.features import no_music_features

        return no_music_features(encoder, self.clip_samples, self.seed)

    @property
    def clip_samples(self) -> int:
        """The length of a clip in samples."""
        return int(self.split("validation").samples.shape[1])

    def labelled(self, name: Split) -> LabelledSpectra:
        """The spectra of a split with the classes of its attributes and time steps."""
        from tinymusician.house_band.skill_labels import attribute_labels, onset_labels, pitch_labels
        from tinymusician.models.audio_encoder import PATCH
        from tinymusician.understand.attribute_task import LabelledSpectra

        clips, spectra = self.split(name).clips, self.spectra(name)
        steps = -(-spectra.shape[-1] // PATCH)
        return LabelledSpectra(spectra, attribute_labels(clips), pitch_labels(clips, steps), onset_labels(clips, steps))

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
        from tinymusician.models.audio_lm_files import model_folder
        from tinymusician.models.checkpoint_files import read_tokenizer
        from tinymusician.understand.tokenizer import train_tokenizer

        if self.config.teacher is not None:
            return read_tokenizer(model_folder(self.config.teacher.model), self.config.teacher.model)
        if self.pretrained_lm is not None:
            return self.pretrained_lm.tokenizer
        questions = self.questions("train")
        texts = [text for question in questions for text in (question.prompt, f" {question.target}")]
        return train_tokenizer(texts, self.config.language_model.vocabulary)

    def _count(self, name: Split) -> int:
        config = self.config.questions
        return {"train": config.train_clips, "validation": config.validation_clips, "test": config.test_clips}[name]
