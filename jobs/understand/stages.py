"""The training stages of an understand job: masked prediction, tuning of the encoder, language, answers, control."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch

from jobs.understand.data import UnderstandData
from jobs.worker.context import WorkerContext
from jobs.worker.ended_training import best_checkpoint
from jobs.worker.stage import TrainingStage, train, trainer_config
from tinymusician.house_band.skill_labels import CLASSES, NUM_PITCH_CLASSES
from tinymusician.models.audio_encoder import AudioEncoder
from tinymusician.models.audio_lm import AudioLM, copy_layers
from tinymusician.models.audio_lm_files import round_weights
from tinymusician.training.engine import AdamConfig, with_prefix
from tinymusician.understand.answer_task import (
    NO_FEATURES,
    AnswerModule,
    AnswerTask,
    AnswerTeacher,
    QuestionSet,
    question_set,
    stated_question_set,
)
from tinymusician.understand.attribute_task import AttributeTask
from tinymusician.understand.lora import AdapterConfig, add_adapters, merge_adapters
from tinymusician.understand.masked_prediction import MaskedPredictionConfig
from tinymusician.understand.pretrain_task import MaskedPredictionTask

if TYPE_CHECKING:
    from torch import Tensor

    from tinymusician.data.splits import Split
    from tinymusician.training.task import Task


_TRAINING_SPLITS: tuple[Split, Split] = ("train", "validation")


ENCODER, ATTRIBUTES, LANGUAGE, ANSWERS, TEXT_ONLY = "encoder", "attributes", "language", "answers", "text-only"
"""The names of the stages."""
_MONITOR = "loss"
"""The held-out metric that picks a stage's best checkpoint."""


def train_encoder(context: WorkerContext, data: UnderstandData) -> None:
    """Masked prediction, as MATPAC++."""
    config = data.config.pretrain
    torch.manual_seed(data.seed)
    settings = MaskedPredictionConfig(
        steps=config.steps,
        mask_share=config.mask_share,
        predictor_width=config.predictor_width,
        predictor_layers=config.predictor_layers,
        predictor_heads=config.predictor_heads,
        classes=config.classes,
        class_hidden=config.classes,
        encoder_decay=config.encoder_decay,
        teacher_warmup_steps=config.teacher_warmup_steps,
    )
    encoder, spectra = AudioEncoder(data.shape.audio_encoder), (data.spectra("train"), data.spectra("validation"))
    task = MaskedPredictionTask(encoder, settings, *spectra, _microbatch(context, config.batch_size), data.seed)
    task.module.to(context.device)
    optimizer = AdamConfig(weight_decay=0.05, max_grad_norm=3.0)
    _train(
        context, ENCODER, task, config.steps, config.learning_rate, config.warmup_steps, config.batch_size, optimizer
    )


def train_attributes(context: WorkerContext, data: UnderstandData) -> None:
    """Fine-tune the encoder on the corpus' attributes."""
    config = data.config.pretrain
    torch.manual_seed(data.seed)
    encoder = data.pretrained_encoder or _checkpoint_encoder(context, data, ENCODER)
    clips = data.labelled("train"), data.labelled("validation")
    task = AttributeTask(
        encoder, CLASSES, NUM_PITCH_CLASSES, *clips, _microbatch(context, config.batch_size), data.seed
    )
    task.module.to(context.device)
    optimizer = AdamConfig(weight_decay=0.05)
    rate, warmup = config.finetune_learning_rate, config.warmup_steps
    _train(context, ATTRIBUTES, task, config.finetune_steps, rate, warmup, config.batch_size, optimizer)


def trained_encoder(context: WorkerContext, data: UnderstandData) -> AudioEncoder:
    """The encoder that the answers are trained on, rounded to float16 as it is shipped."""
    if data.pretrained_encoder is not None and not data.finetunes_encoder:
        return data.pretrained_encoder.to(context.device).eval()
    encoder = _checkpoint_encoder(context, data, ATTRIBUTES if data.finetunes_encoder else ENCODER)
    round_weights(encoder)
    return encoder.to(context.device).eval()


def encoder_stages(context: WorkerContext, data: UnderstandData) -> dict[str, AudioEncoder]:
    """The encoder at every stage of its training, from random weights to those that are shipped."""
    torch.manual_seed(data.seed)
    stages = {"random weights": AudioEncoder(data.shape.audio_encoder)}
    if data.pretrained_encoder is not None:
        stages["given"] = data.pretrained_encoder
    else:
        stages["masked prediction"] = _checkpoint_encoder(context, data, ENCODER)
    if data.finetunes_encoder:
        stages["fine-tuned"] = trained_encoder(context, data)
    return {name: encoder.to(context.device).eval() for name, encoder in stages.items()}


def _checkpoint_encoder(context: WorkerContext, data: UnderstandData, stage: str) -> AudioEncoder:
    encoder = AudioEncoder(data.shape.audio_encoder)
    encoder.load_state_dict(with_prefix(best_weights(context, stage), "encoder."))
    return encoder


def train_language(context: WorkerContext, data: UnderstandData) -> None:
    """Train the language model alone, on the questions with what they ask for in words, as TinyMU's is pre-trained.

    So it can compare and choose before it listens: from audio alone, a small model hardly learns to say yes or no.
    """
    config = data.config.train
    torch.manual_seed(data.seed)
    words, end = data.tokenizer, data.shape.lm.end
    train_set, held_out = (stated_question_set(words, end, data.questions(name)) for name in _TRAINING_SPLITS)
    task = AnswerTask(
        AudioLM(data.shape),
        data.tokenizer,
        train_set,
        held_out,
        NO_FEATURES,
        _microbatch(context, config.batch_size),
        data.seed,
        is_text_only=True,
    )
    task.module.to(context.device)
    optimizer = AdamConfig(beta2=0.999, weight_decay=config.weight_decay)
    rate, warmup = config.learning_rate, config.warmup_steps
    _train(context, LANGUAGE, task, config.language_steps, rate, warmup, config.batch_size, optimizer)


def train_answers(context: WorkerContext, data: UnderstandData, stage: str) -> None:
    """Train projector and language model on the questions; the text-only control has no audio."""
    config, is_text_only = data.config.train, stage == TEXT_ONLY
    torch.manual_seed(data.seed)
    model = _new_model(context, data)
    if config.language_steps:
        model.lm.load_state_dict(with_prefix(best_weights(context, LANGUAGE), "lm."))
    encoder, teacher = model.audio_encoder, None if is_text_only else _teacher(context, data)
    if teacher is not None and data.config.teacher is not None and data.config.teacher.layers:
        copy_layers(teacher.model, model, data.config.teacher.layers)
    task = AnswerTask(
        model,
        data.tokenizer,
        _questions(data, encoder, "train"),
        _questions(data, encoder, "validation"),
        data.no_music_features(encoder),
        _microbatch(context, config.batch_size),
        data.seed,
        is_text_only,
        config.no_music_share,
        teacher,
    )
    model.to(context.device)
    steps = config.text_only_steps if is_text_only else config.steps
    optimizer = AdamConfig(beta2=0.999, weight_decay=config.weight_decay)
    _train(context, stage, task, steps, config.learning_rate, config.warmup_steps, config.batch_size, optimizer)


def _teacher(context: WorkerContext, data: UnderstandData) -> AnswerTeacher | None:
    if data.teacher is None or data.config.teacher is None:
        return None
    return AnswerTeacher(data.teacher.to(context.device), data.config.teacher.hard)


def trained_model(context: WorkerContext, data: UnderstandData, stage: str) -> AudioLM:
    """A trained model, rounded to float16 as it is shipped, in evaluation mode."""
    model = _new_model(context, data)
    AnswerModule(model).load_state_dict(best_weights(context, stage))
    if data.config.language_model.lora_rank:
        merge_adapters(model)
    round_weights(model)
    return model.eval()


def _new_model(context: WorkerContext, data: UnderstandData) -> AudioLM:
    """The model before its answers are trained: the trained encoder, and the given language model with its adapters."""
    model, config = AudioLM(data.shape), data.config.language_model
    model.audio_encoder = trained_encoder(context, data)
    if data.pretrained_lm is not None:
        model.lm.load_state_dict(data.pretrained_lm.weights)
    if config.lora_rank:
        add_adapters(model, AdapterConfig(config.lora_rank, config.lora_alpha))
    return model


def best_weights(context: WorkerContext, stage: str) -> dict[str, Tensor]:
    """The weights of a stage's best checkpoint."""
    return dict(best_checkpoint(context, stage).state.weights)


def _questions(data: UnderstandData, encoder: AudioEncoder, name: Split) -> QuestionSet:
    return question_set(data.tokenizer, data.shape.lm.end, data.questions(name), data.features(name, encoder))


def _microbatch(context: WorkerContext, batch_size: int) -> int:
    """The clips or questions of a microbatch: `training.batch_size`, or a whole step where that is less."""
    return min(context.recipe.training.batch_size, batch_size)


def _train(
    context: WorkerContext,
    stage: str,
    task: Task,
    steps: int,
    rate: float,
    warmup: int,
    batch_size: int,
    optimizer: AdamConfig,
) -> None:
    training, microbatch = context.recipe.training, _microbatch(context, batch_size)
    config = replace(
        trainer_config(training, steps, rate, _MONITOR),
        microbatches=-(-batch_size // microbatch),
        warmup=min(warmup, steps // 10),
    )
    zero_stage: Literal[0] = 0  # the teachers' averages and the frozen encoder need whole weights
    train(context, TrainingStage(stage, task, config, optimizer, microbatch, zero_stage, context.precision()))
