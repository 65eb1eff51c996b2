"""What is made smaller beside the language model: text encoder and codec, each a stage of its own; then all at once.

text-encoder → codec → distill (the language model, which hears through the one and never the other) → joint. Each has
checkpoints and metrics of its own, and goes on where it was interrupted.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from jobs.worker.context import WorkerContext
from jobs.worker.stage import TrainingStage, train, trainer_config
from tinymusician.data.tokens import TokenDataset
from tinymusician.models.param_count import check_piece
from tinymusician.recipe import Recipe

MONITORS = {"text-encoder": "kl", "codec": "spectral", "distill": "kl", "joint": "whole"}
"""The stages, and the held-out figure that picks the best checkpoint of each."""


_TEXTS, _PIECES = 256, 16
"""Texts and pieces of sound by which the linear maps to the teacher's states begin."""


class StudentComponents(NamedTuple):
    """A text encoder with its map, and a codec with its projections; None for the teacher's own."""

    text: Any
    codec: Any


def build_components(recipe: Recipe, teacher: Any) -> StudentComponents:
    """Cut out of the teacher's.

    Raises:
        RecipeError: they do not fit into the teacher's.
    """
    from tinymusician.distill.codec_distill import ProjectedCodec
    from tinymusician.models.prune_width_codec import narrow_codec
    from tinymusician.models.prune_width_text import narrow_text

    text = codec = None
    if (text_config := recipe.text_encoder) is not None:
        text = narrow_text(
            teacher.text_encoder, text_config.layers, text_config.width, text_config.heads, text_config.feed_forward
        )
    if (codec_config := recipe.codec) is not None:
        codec = ProjectedCodec(
            narrow_codec(teacher.audio_encoder, codec_config.filters, codec_config.residual_layers),
            teacher.audio_encoder,
        )
    return StudentComponents(text, codec)


def load_components(context: WorkerContext, teacher: Any) -> StudentComponents:
    """As the best checkpoints of their stages have them."""
    parts = build_components(context.recipe, teacher)
    for stage, part in (("text-encoder", parts.text), ("codec", parts.codec)):
        if part is not None:
            part.load_state_dict(load_best_component(context, stage))
    return parts


def load_best_component(context: WorkerContext, stage: str) -> dict[str, Any]:
    """The weights of a part at its best checkpoint."""
    from tinymusician.distill.component import PART

    best = checkpoints(context, stage).best()
    assert best is not None, "every stage validates at its end"
    weights = best.state.weights
    return {name.removeprefix(PART): value for name, value in weights.items() if name.startswith(PART)}


def checkpoints(context: WorkerContext, stage: str) -> Any:
    """Those of a stage."""
    from tinymusician.training.checkpoint import CheckpointManager

    return CheckpointManager(context.run.store, context.run.checkpoints_key(stage), MONITORS[stage])


def train_components(
    context: WorkerContext, teacher: Any, tokens: TokenDataset, held_out: TokenDataset
) -> StudentComponents:
    """Train what the recipe makes smaller beside the language model, one after the other."""
    teacher.to("cpu")  # where sampling may not have left it; parts are cut and fitted here
    parts = build_components(context.recipe, teacher)
    if parts.text is not None:
        _train_text(context, teacher, parts.text, tokens, held_out)
        teacher.to("cpu")
    if parts.codec is not None:
        _train_codec(context, teacher, parts.codec, tokens, held_out)
        teacher.to("cpu")
    return load_components(context, teacher)


def _train_text(context: WorkerContext, teacher: Any, text: Any, tokens: TokenDataset, held_out: TokenDataset) -> None:
    from tinymusician.distill.text_distill import TextEncoderDistillTask

    config, training = context.recipe.text_encoder, context.recipe.training
    assert config is not None
    method, seed = context.recipe.joint.balance, training.seed
    fit_text_projections(text, teacher, tokens)
    task = TextEncoderDistillTask(text, teacher, tokens, held_out, method, training.batch_size, seed, context.device)
    _train(context, "text-encoder", task, config.steps, config.learning_rate, context.precision())


def _train_codec(
    context: WorkerContext, teacher: Any, codec: Any, tokens: TokenDataset, held_out: TokenDataset
) -> None:
    config = context.recipe.codec
    assert config is not None
    fit_codec_projections(
        codec, teacher, tokens, codec_piece_frames(context.recipe, teacher), context.recipe.training.seed
    )
    task = codec_distill_task(context, teacher, codec, tokens, held_out)
    _train(context, "codec", task, config.steps, config.learning_rate, "float32")


def fit_text_projections(text: Any, teacher: Any, tokens: TokenDataset) -> None:
    """Let a text encoder's map begin where it is best for the first different texts."""
    import numpy as np
    import torch

    from tinymusician.distill.text_distill import fit_text

    texts = np.unique(tokens.text_ids, axis=0, return_index=True)[1][:_TEXTS]
    fit_text(text, teacher, *(torch.from_numpy(part[texts]) for part in (tokens.text_ids, tokens.text_mask)))


def fit_codec_projections(codec: Any, teacher: Any, tokens: TokenDataset, frames: int, seed: int) -> None:
    """Let a codec's maps begin where they are best for pieces of the first sequences."""
    import numpy as np

    from tinymusician.distill.codec_distill import pieces

    rows = np.arange(min(len(tokens.codes), _PIECES))
    codec.fit(teacher.audio_encoder, pieces(tokens, rows, frames, np.random.default_rng(seed)))


def codec_distill_task(
    context: WorkerContext, teacher: Any, codec: Any, tokens: TokenDataset, held_out: TokenDataset
) -> Any:
    """The codec's task, in float32 everywhere: its losses are spectra and logarithms."""
    from tinymusician.distill.codec_distill import CodecDistillTask

    recipe = context.recipe
    assert recipe.codec is not None
    frames = codec_piece_frames(recipe, teacher)
    method, batch, seed = recipe.joint.balance, recipe.codec.batch_size, recipe.training.seed
    return CodecDistillTask(codec, teacher.audio_encoder, tokens, held_out, frames, method, batch, seed, context.device)


def codec_piece_frames(recipe: Recipe, teacher: Any) -> int:
    """How many frames a piece of sound has: no more than the sequences.

    Raises:
        RecipeError: it is too short for a spectrum.
    """
    codec = teacher.config.audio_encoder
    assert recipe.codec is not None
    seconds = min(recipe.codec.seconds, recipe.sequences.seconds)
    return check_piece(seconds, float(codec.frame_rate), math.prod(codec.upsampling_ratios))


def train_jointly(
    context: WorkerContext,
    teacher: Any,
    parts: StudentComponents,
    objective: Any,
    tokens: TokenDataset,
    held_out: TokenDataset,
) -> None:
    """Tune all three; `objective` is the language model's task, on a student that is trained part by part."""
    from tinymusician.distill.joint import JointTask

    joint, student = context.recipe.joint, objective.student
    parts.text.encoder, parts.codec.codec = student.text_encoder, student.audio_encoder
    sound = codec_distill_task(context, teacher, parts.codec, tokens, held_out)
    task = JointTask(objective, parts.text, sound, teacher.text_encoder, joint.balance, context.device)
    _train(context, "joint", task, joint.steps, joint.learning_rate, "float32")


def _train(context: WorkerContext, name: str, task: Any, steps: int, rate: float, precision: Any) -> None:
    from tinymusician.training.engine import AdamConfig

    training = context.recipe.training
    plan = trainer_config(training, steps, rate, MONITORS[name])
    settings = AdamConfig(weight_decay=training.weight_decay, max_grad_norm=training.max_grad_norm)
    train(context, TrainingStage(name, task, plan, settings, task.batch_size, 0, precision))
    context.barrier()


def finished_stages(context: WorkerContext, teacher: Any, student: Any) -> dict[str, Any]:
    """Give a distilled student what the joint tuning made of it, if there was any, and say what became of every part.

    `text_…` and `codec_…` are held-out figures of those stages, `joint_…` those of the whole; `parameters_…` count what
    a device plays with, so of the codec only its decoder.
    """
    from tinymusician.distill.report import plot_parts

    stages = [stage for stage in REPORTED_METRICS if checkpoints(context, stage).steps()]
    rows = {stage: stage_metrics(context, stage) for stage in stages}
    figures: dict[str, Any] = {}
    for stage in stages:
        for when, row in zip(("initial", "final"), monitored_metrics(context, stage), strict=True):
            what = stage.removesuffix("-encoder")
            figures |= {f"{what}_{name}_{when}": row[f"held_out/{name}"] for name in REPORTED_METRICS[stage]}
    if "joint" in stages:
        load_joint_weights(student, load_best_component(context, "joint"))
    for who, model in (("teacher_", teacher), ("", student)):
        figures |= {f"{who}parameters_{name}": count for name, count in parameter_counts(model).items()}
    with tempfile.TemporaryDirectory() as name:
        picture = Path(name) / "parts.png"
        plot_parts(rows, picture)
        context.run.store.upload(picture, context.run.key("parts.png"))
    return figures


def stage_metrics(context: WorkerContext, stage: str) -> list[dict[str, Any]]:
    """What a stage wrote down."""
    from tinymusician.training.metrics import read_metrics

    return read_metrics(context.run.store, context.run.metrics_key(stage))


def monitored_metrics(context: WorkerContext, stage: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows with a stage's held-out figures before training, and at its best checkpoint."""
    best = checkpoints(context, stage).best_step()
    rows = {row["step"]: row for row in stage_metrics(context, stage) if f"held_out/{MONITORS[stage]}" in row}
    return rows[0], rows[best]


REPORTED_METRICS = {
    "text-encoder": ("kl", "states"),
    "codec": ("spectral", "log_mel", "si_sdr", "same_codes"),
    "joint": ("kl", "spectral", "si_sdr"),
}
"""Of each stage's held-out figures, those that are told."""


def load_joint_weights(student: Any, weights: dict[str, Any]) -> None:
    """Put the weights of the joint tuning into a student; the maps that only training needs are left."""
    from tinymusician.models.musicgen import ConditionedDecoder

    targets = {
        "decoder.": ConditionedDecoder(student),
        "text.encoder.": student.text_encoder,
        "codec.codec.": student.audio_encoder,
    }
    for prefix, place in targets.items():
        selected = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        place.load_state_dict(selected)


def parameter_counts(model: Any) -> dict[str, int]:
    """Of each part that a device plays with, and of all."""
    from tinymusician.models.musicgen import ConditionedDecoder

    parts = {
        "text_encoder": model.text_encoder,
        "language_model": ConditionedDecoder(model),
        "codec_decoder": model.audio_encoder.decoder,
    }
    counts = {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}
    return {**counts, "whole": sum(counts.values())}
