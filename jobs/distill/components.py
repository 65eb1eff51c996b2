"""The components of a student beside its language model: text encoder and codec, each trained in a stage of its own.

text-encoder → codec → distill (the language model, which reads the text encoder's states and never the codec) → joint.
Each stage has its own checkpoints and metrics, and continues where it was interrupted.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jobs.worker.context import WorkerContext
from jobs.worker.ended_training import best_checkpoint, has_ended, history_of
from jobs.worker.stage import TrainingStage, train, trainer_config
from tinymusician.data.tokens import TokenDataset
from tinymusician.models.component_shapes import check_piece
from tinymusician.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from tinymusician.distill.codec_distill import CodecDistillTask, ProjectedCodec
    from tinymusician.distill.joint import JointTask
    from tinymusician.distill.task import DistillTask
    from tinymusician.distill.text_distill import TextEncoderDistillTask
    from tinymusician.models.protocols import HasParameters, Musicgen
    from tinymusician.models.prune_width_text import ProjectedTextEncoder
    from tinymusician.training.engine import ComputeDtype

Metrics = dict[str, float]
MONITORS = {"text-encoder": "kl", "codec": "spectral", "distill": "kl", "joint": "whole"}
"""By stage, the held-out metric that picks the best checkpoint."""
REPORTED_METRICS = {
    "text-encoder": ("kl", "states"),
    "codec": ("spectral", "log_mel", "si_sdr", "same_codes"),
    "joint": ("kl", "spectral", "si_sdr"),
}
"""By stage, the held-out metrics that the student's artifact lists."""
_TEXTS, _PIECES = 256, 16
"""The number of texts, and of audio segments, that the linear maps to the teacher's states are fitted to."""


class StudentComponents(NamedTuple):
    """A text encoder with its map, and a codec with its projections; None where the student uses the teacher's."""

    text: ProjectedTextEncoder | None
    codec: ProjectedCodec | None


def build_components(recipe: Recipe, teacher: Musicgen) -> StudentComponents:
    """Prune the teacher's components.

    Raises:
        RecipeError: a size exceeds the teacher's.
    """
    from tinymusician.distill.codec_distill import ProjectedCodec
    from tinymusician.models.prune_width_codec import prune_codec
    from tinymusician.models.prune_width_text import prune_text_encoder

    text = codec = None
    if (size := recipe.text_encoder) is not None:
        text = prune_text_encoder(teacher.text_encoder, size.layers, size.width, size.heads, size.feed_forward)
    if (config := recipe.codec) is not None:
        pruned = prune_codec(teacher.audio_encoder, config.filters, config.residual_layers)
        codec = ProjectedCodec(pruned, teacher.audio_encoder)
    return StudentComponents(text, codec)


def load_components(context: WorkerContext, teacher: Musicgen) -> StudentComponents:
    """The components with the weights of their stages' best checkpoints."""
    components = build_components(context.recipe, teacher)
    if components.text is not None:
        components.text.load_state_dict(_load_best_component(context, "text-encoder"))
    if components.codec is not None:
        components.codec.load_state_dict(_load_best_component(context, "codec"))
    return components


def _load_best_component(context: WorkerContext, stage: str) -> dict[str, Tensor]:
    """A component's weights at its stage's best checkpoint."""
    from tinymusician.distill.component import PART

    weights = best_checkpoint(context, stage).state.weights
    return {name.removeprefix(PART): value for name, value in weights.items() if name.startswith(PART)}


def train_components(
    context: WorkerContext, teacher: Musicgen, tokens: TokenDataset, held_out: TokenDataset
) -> StudentComponents:
    """Train the components that the recipe makes smaller, one after the other."""
    teacher.to("cpu")  # sampling may have left it on a GPU; components are pruned and fitted on the CPU
    components = build_components(context.recipe, teacher)
    if components.text is not None:
        _train_text(context, teacher, components.text, tokens, held_out)
        teacher.to("cpu")
    if components.codec is not None:
        _train_codec(context, teacher, components.codec, tokens, held_out)
        teacher.to("cpu")
    return load_components(context, teacher)


def _train_text(
    context: WorkerContext,
    teacher: Musicgen,
    text: ProjectedTextEncoder,
    tokens: TokenDataset,
    held_out: TokenDataset,
) -> None:
    from tinymusician.distill.text_distill import TextEncoderDistillTask

    config, training = context.recipe.text_encoder, context.recipe.training
    assert config is not None
    method, seed = context.recipe.joint.balance, training.seed
    if config.map_start == "least_squares":
        fit_text_projections(text, teacher, tokens)
    task = TextEncoderDistillTask(text, teacher, tokens, held_out, method, training.batch_size, seed, context.device)
    _train(context, "text-encoder", task, config.steps, config.learning_rate, context.precision())


def _train_codec(
    context: WorkerContext, teacher: Musicgen, codec: ProjectedCodec, tokens: TokenDataset, held_out: TokenDataset
) -> None:
    config = context.recipe.codec
    assert config is not None
    if config.map_start == "least_squares":
        frames = codec_piece_frames(context.recipe, teacher)
        fit_codec_projections(codec, teacher, tokens, frames, context.recipe.training.seed)
    task = _codec_distill_task(context, teacher, codec, tokens, held_out)
    _train(context, "codec", task, config.steps, config.learning_rate, "float32")


def fit_text_projections(text: ProjectedTextEncoder, teacher: Musicgen, tokens: TokenDataset) -> None:
    """Initialize a text encoder's map by least squares on the first different texts."""
    import numpy as np
    import torch

    from tinymusician.distill.text_distill import fit_text

    texts = np.unique(tokens.text_ids, axis=0, return_index=True)[1][:_TEXTS]
    fit_text(text, teacher, *(torch.from_numpy(part[texts]) for part in (tokens.text_ids, tokens.text_mask)))


def fit_codec_projections(
    codec: ProjectedCodec, teacher: Musicgen, tokens: TokenDataset, frames: int, seed: int
) -> None:
    """Initialize a codec's projections by least squares on pieces of the first sequences."""
    import numpy as np

    from tinymusician.distill.codec_distill import pieces

    rows = np.arange(min(len(tokens.codes), _PIECES))
    codec.fit(teacher.audio_encoder, pieces(tokens, rows, frames, np.random.default_rng(seed)))


def _codec_distill_task(
    context: WorkerContext, teacher: Musicgen, codec: ProjectedCodec, tokens: TokenDataset, held_out: TokenDataset
) -> CodecDistillTask:
    """The codec's task, always in float32: its losses are spectra and logarithms."""
    from tinymusician.distill.codec_distill import CodecDistillTask

    recipe = context.recipe
    assert recipe.codec is not None
    frames = codec_piece_frames(recipe, teacher)
    method, batch, seed = recipe.joint.balance, recipe.codec.batch_size, recipe.training.seed
    return CodecDistillTask(codec, teacher.audio_encoder, tokens, held_out, frames, method, batch, seed, context.device)


def codec_piece_frames(recipe: Recipe, teacher: Musicgen) -> int:
    """The length in frames of the codec's pieces of audio, at most that of the sequences.

    Raises:
        RecipeError: it is too short for a spectrum.
    """
    codec = teacher.config.audio_encoder
    assert recipe.codec is not None
    seconds = min(recipe.codec.seconds, recipe.sequences.seconds)
    return check_piece(seconds, float(codec.frame_rate), math.prod(codec.upsampling_ratios))


def train_jointly(
    context: WorkerContext,
    teacher: Musicgen,
    components: StudentComponents,
    objective: DistillTask,
    tokens: TokenDataset,
    held_out: TokenDataset,
) -> None:
    """Tune all three components together; `objective` is the language model's task, on a trained student."""
    from tinymusician.distill.joint import JointTask

    text, codec = components
    assert text is not None
    assert codec is not None
    joint, student = context.recipe.joint, objective.student
    text.encoder, codec.codec = student.text_encoder, student.audio_encoder
    codec_task = _codec_distill_task(context, teacher, codec, tokens, held_out)
    task = JointTask(objective, text, codec_task, teacher.text_encoder, joint.balance, context.device)
    _train(context, "joint", task, joint.steps, joint.learning_rate, "float32")


def _train(
    context: WorkerContext,
    name: str,
    task: TextEncoderDistillTask | CodecDistillTask | JointTask,
    steps: int,
    rate: float,
    precision: ComputeDtype,
) -> None:
    from tinymusician.training.engine import AdamConfig
    from tinymusician.training.tf32 import tf32_products

    training = context.recipe.training
    config = trainer_config(training, steps, rate, MONITORS[name])
    settings = AdamConfig(weight_decay=training.weight_decay, max_grad_norm=training.max_grad_norm)
    with tf32_products():
        train(context, TrainingStage(name, task, config, settings, task.batch_size, 0, precision))
    context.barrier()


def component_metrics(context: WorkerContext, teacher: Musicgen, student: Musicgen) -> Metrics:
    """The metrics of all component stages; a student gets the weights of the joint tuning, if there was any.

    `text_…`, `codec_…` and `joint_…` are held-out metrics of those stages; `parameters_…` count the parameters that a
    device needs, so of the codec only its decoder.
    """
    from tinymusician.distill.plots import plot_components

    stages = [stage for stage in REPORTED_METRICS if has_ended(context, stage)]
    rows = {stage: context.run.metrics(stage) for stage in stages}
    metrics: Metrics = {}
    for stage in stages:
        prefix = stage.removesuffix("-encoder")
        history = history_of(context, stage)
        for when, values in (("initial", history.initial), ("final", history.best)):
            metrics |= {f"{prefix}_{name}_{when}": values[name] for name in REPORTED_METRICS[stage]}
    if "joint" in stages:
        load_joint_weights(student, _load_best_component(context, "joint"))
    for prefix, model in (("teacher_", teacher), ("", student)):
        metrics |= {f"{prefix}parameters_{name}": count for name, count in parameter_counts(model).items()}
    with tempfile.TemporaryDirectory() as name:
        picture = Path(name) / "components.png"
        plot_components(rows, picture)
        context.run.write_plot("components", picture)
    return metrics


def load_joint_weights(student: Musicgen, weights: dict[str, Tensor]) -> None:
    """Load the weights of the joint tuning into a student, without the maps that only training needs."""
    from tinymusician.models.conditional_decoder import ConditionedDecoder

    targets = {
        "decoder.": ConditionedDecoder(student),
        "text.encoder.": student.text_encoder,
        "codec.codec.": student.audio_encoder,
    }
    for prefix, module in targets.items():
        module.load_state_dict(
            {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        )


def parameter_counts(model: Musicgen) -> dict[str, int]:
    """The number of parameters of each component that a device needs, and of all (`whole`)."""
    from tinymusician.models.conditional_decoder import ConditionedDecoder

    components: dict[str, HasParameters] = {
        "text_encoder": model.text_encoder,
        "language_model": ConditionedDecoder(model),
        "codec_decoder": model.audio_encoder.decoder,
    }
    counts = {name: sum(weight.numel() for weight in part.parameters()) for name, part in components.items()}
    return {**counts, "whole": sum(counts.values())}
