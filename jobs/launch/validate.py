"""Validates a job on the submitting machine, as far as that is possible without loading weights."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

from jobs.launch.estimate import frames_of, student_shape
from jobs.registry import JobKind
from tinymusician.data.captioned import check_clip_folder
from tinymusician.data.prompts import load_prompts
from tinymusician.errors import ModelError, PlanError, RecipeError
from tinymusician.inputs import is_on_nodes, scheme_of
from tinymusician.models.checkpoint_files import check_model
from tinymusician.models.component_shapes import (
    check_codec_size,
    check_piece,
    check_text,
    check_text_width,
    component_shapes,
)
from tinymusician.models.shape import (
    RELEASE,
    check_pruned_width,
    check_tensor_parallel,
    shape_of,
)
from tinymusician.models.tensor_shapes import DecoderShape
from tinymusician.recipe import CachedSignalsConfig, LayerSubset, Recipe, WidthPrunedStudent

PRETRAIN_KEYS = (
    "pretrain.",
    "training.device",
    "training.cpus_per_worker",
    "training.precision",
    "training.seed",
    "training.log_every",
    "training.max_restarts",
    "training.hang_seconds",
    "training.max_skipped_steps",
    "training.min_workers",
)
UNDERSTAND_KEYS = (
    "understand.",
    "training.batch_size",
    "training.device",
    "training.cpus_per_worker",
    "training.precision",
    "training.seed",
    "training.log_every",
    "training.validate_every",
    "training.checkpoint_every",
    "training.checkpoint_minutes",
    "training.max_restarts",
    "training.hang_seconds",
    "training.max_skipped_steps",
    "training.min_workers",
)
ADAPTIVE_PLAN_KEYS = ("kl_budget", "precisions", "block_size", "symmetric", "method", "cache")


def check_overrides(kind: JobKind, overrides: list[str], recipe: Recipe) -> None:
    """Check that every override changes a key that a job of this kind reads.

    Pretraining has its own settings for each model, and a plan file contains the rounding method.

    Raises:
        RecipeError: an override has no effect.
    """
    for override in overrides if kind == "quantize" and recipe.quantize.plan != "adaptive" else ():
        if override.partition("=")[0].removeprefix("quantize.") in ADAPTIVE_PLAN_KEYS:
            raise RecipeError(f"--set {override}: only plan adaptive reads it; a plan's file says how that plan rounds")
    for override in overrides if kind == "pretrain" else ():
        if not override.startswith(PRETRAIN_KEYS):
            raise RecipeError(f"--set {override}: pretraining reads only {', '.join(PRETRAIN_KEYS)}")
    for override in overrides if kind == "understand" else ():
        if not override.startswith(UNDERSTAND_KEYS):
            raise RecipeError(f"--set {override}: understand jobs read only {', '.join(UNDERSTAND_KEYS)}")


def check(kind: JobKind, recipe: Recipe, here: bool) -> None:
    """Check a recipe with located inputs, and what this machine must have if the job runs `here`.

    Raises:
        RecipeError, ModelError, DataError: the first problem.
    """
    if kind == "pretrain":
        return _check_pretrain(recipe)
    if kind == "understand":
        return _check_understand(recipe)
    if kind == "quantize":
        return _check_quantize(recipe, here)
    if kind == "evaluate":
        return _check_evaluate(recipe, here)
    if kind in ("sweep", "pipeline"):
        _check_evaluate(recipe, here)
    ranged, split = recipe.teacher.guidance_range is not None, recipe.teacher.tensor_parallel_size > 1
    from_actors = recipe.signals.source == "actors"
    if kind == "sweep":
        _check_sweep_evaluation(recipe)
    if kind == "sweep" and (recipe.needs_teacher or recipe.has_small_components or ranged or split or from_actors):
        raise RecipeError(
            "sweep: its trainings learn from shards, one a worker; on_policy.share, hidden.weight, text_encoder, "
            "codec, teacher.guidance_range, teacher.tensor_parallel_size and signals.source=actors are not supported"
        )
    if kind == "pipeline":
        bundled = recipe.pipeline.last not in ("precompute", "distill")
        if ranged and bundled and recipe.quantize.format != "fused":
            raise RecipeError(
                f"quantize.format = {recipe.quantize.format}: has no input for teacher.guidance_range; allowed is fused"
            )
        _check_quantize(recipe, here)
        _check_release(recipe, here)
    _check_files(recipe)
    check_shapes(recipe)
    return None


def with_loaded_plan(recipe: Recipe) -> Recipe:
    """The recipe with the content of its plan file instead of the path, which the cluster does not have.

    Raises:
        PlanError: the file is not a plan, or the recipe's format does not support it.
    """
    if recipe.quantize.plan == "adaptive":
        return recipe
    from tinymusician.quantize.precision import is_file, load_plan

    plan = load_plan(recipe.quantize.plan)
    if recipe.quantize.format == "optimum" and plan.cache == "int8":
        raise PlanError(f"plan {plan.name}: keeps its cache in int8, which format optimum does not support")
    if not isinstance(recipe.quantize.plan, str) or not is_file(recipe.quantize.plan):
        return recipe
    content = {"plan": plan.model_dump(mode="json")}
    return recipe.model_copy(update={"quantize": recipe.quantize.model_copy(update=content)})


def _check_pretrain(recipe: Recipe) -> None:
    if recipe.pretrain is None:
        raise RecipeError(
            f"recipe {recipe.name}: has no `pretrain` section; only the house band is trained from scratch"
        )


def _check_quantize(recipe: Recipe, here: bool) -> None:
    """Check that the prompts can be read, and that the packages for export are installed."""
    _check_prompts(recipe)
    if here:
        needed = ("onnx", "onnxscript", "optimum.exporters" if recipe.quantize.format == "optimum" else "onnx")
        for package in needed:
            if find_spec(package.partition(".")[0]) is None:
                raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def _check_evaluate(recipe: Recipe, here: bool) -> None:
    """Check that there is a reference, and that its files, the prompts and the folders of audio exist."""
    config = recipe.evaluate
    if config.reference is None:
        kinds = "band, folder, musiccaps, musicbench or statistics"
        raise RecipeError(f"evaluate.reference: none is given; allowed are {kinds}, such as --reference FOLDER")
    if here and config.first in ("generate", "embed"):
        from jobs.evaluate.open import check_inputs

        check_inputs(config, recipe.sequences.prompts)
        if config.evaluates_models:
            check_model(recipe.teacher.model)


def _check_understand(recipe: Recipe) -> None:
    """Check that the recipe has the section, and that its steps are whole microbatches."""
    config = recipe.understand
    if config is None:
        raise RecipeError(f"recipe {recipe.name}: has no `understand` section; band-mu and tinymu have one")
    for key, batch in (("pretrain", config.pretrain.batch_size), ("train", config.train.batch_size)):
        if batch % min(batch, recipe.training.batch_size):
            raise RecipeError(
                f"understand.{key}.batch_size = {batch}: must be a multiple of training.batch_size = "
                f"{recipe.training.batch_size}, the clips or questions of a microbatch"
            )


def _check_sweep_evaluation(recipe: Recipe) -> None:
    if recipe.evaluate.audio or recipe.evaluate.prompts is not None:
        raise RecipeError("sweep: compares students with real clips of their prompts; no evaluate.audio or .prompts")


def _check_release(recipe: Recipe, here: bool) -> None:
    """Check that the release key exists, if the pipeline signs on this machine."""
    if here and recipe.pipeline.last == "publish":
        from jobs.release import check_release_key
        from tinymusician.artifacts.open import open_store

        check_release_key(open_store())


def _check_prompts(recipe: Recipe) -> None:
    """Check that the prompts can be read, unless only the cluster can."""
    if not is_on_nodes(recipe.sequences.prompts):
        load_prompts(recipe.sequences.prompts)


def _check_files(recipe: Recipe) -> None:
    """Check prompts, clips and folders of models, as far as they are here."""
    _check_prompts(recipe)
    clips = recipe.sequences.clips
    if clips is not None and not scheme_of(clips):
        check_clip_folder(Path(clips))
    release = Path(recipe.teacher.model).expanduser()
    is_local = recipe.teacher.kind == "audiocraft" and not scheme_of(recipe.teacher.model)
    if is_local and not all((release / name).is_file() for name in RELEASE):
        raise ModelError(
            f"teacher.model = {str(release)!r}: no audiocraft release; {' and '.join(RELEASE)} belong there"
        )
    for name in (recipe.teacher.model, getattr(recipe.student, "model", "")):
        if name:
            check_model(name)


def check_shapes(recipe: Recipe) -> None:
    """Check that the student fits its teacher, and the sequences fit both, where shapes are known."""
    teacher = shape_of(recipe.teacher.model)
    if teacher is None:
        return
    if isinstance(recipe.student, LayerSubset):
        layers = recipe.student.layers
        if len(layers) > teacher.layers:
            raise RecipeError(
                f"student.layers = {list(layers)}: deeper than the teacher, which has {teacher.layers} layers"
            )
        if max(layers) >= teacher.layers:
            raise RecipeError(f"student.layers = {list(layers)}: the teacher's layers are 0 to {teacher.layers - 1}")
    if isinstance(student_config := recipe.student, WidthPrunedStudent):
        shape = teacher.width, teacher.heads, teacher.feed_forward
        check_pruned_width(
            student_config.width, student_config.heads, student_config.feed_forward, *shape, teacher.text
        )
    _check_parts(recipe)
    check_length(recipe, teacher)
    check_tensor_parallel(teacher.heads, teacher.feed_forward, recipe.teacher.tensor_parallel_size)
    if isinstance(recipe.signals, CachedSignalsConfig) and (recipe.signals.top_k or 1) > teacher.vocabulary:
        raise RecipeError(f"signals.top_k = {recipe.signals.top_k}: allowed are 1 to {teacher.vocabulary} codes")
    student = student_shape(recipe, teacher)
    if student and (student.codebooks, student.vocabulary) != (teacher.codebooks, teacher.vocabulary):
        raise ModelError(
            f"student: {student.codebooks} codebooks of {student.vocabulary}; "
            f"the teacher's {teacher.codebooks} of {teacher.vocabulary} are needed"
        )


def _check_parts(recipe: Recipe) -> None:
    """Check that text encoder and codec are not larger than the teacher's, where shapes are known.

    Raises:
        RecipeError: they are.
    """
    shapes, teacher = component_shapes(recipe.teacher.model), shape_of(recipe.teacher.model)
    if shapes is None or teacher is None:
        return
    if (part := recipe.text_encoder) is not None:
        requested = part.layers, part.width, part.heads, part.feed_forward
        check_text(*requested, shapes[0].layers, shapes[0].width, shapes[0].heads, shapes[0].feed_forward)
        student = student_shape(recipe, teacher)
        if student is not None:
            check_text_width(part.width, student.width)
    if recipe.codec is not None:
        seconds, filters = min(recipe.codec.seconds, recipe.sequences.seconds), recipe.codec.filters
        check_piece(seconds, teacher.frame_rate, math.prod(shapes[1].ratios))
        if recipe.codec.residual_layers and filters < shapes[1].compress:
            raise RecipeError(f"codec.filters = {filters}: at least {shapes[1].compress} where residual blocks are")
        check_codec_size(filters, recipe.codec.residual_layers, shapes[1].filters, shapes[1].residual_layers)


def check_length(recipe: Recipe, teacher: DecoderShape) -> None:
    """Check that the recipe's sequences have a frame or more, and fit into the decoder's positions with their delay."""
    longest = (teacher.positions - teacher.codebooks) / teacher.frame_rate
    if not 1 <= frames_of(recipe, teacher) <= teacher.positions - teacher.codebooks:
        raise RecipeError(
            f"sequences.seconds = {recipe.sequences.seconds:g}: allowed are {1 / teacher.frame_rate:g} to "
            f"{longest:.1f} s, by the teacher's {teacher.positions} positions of {1000 / teacher.frame_rate:g} ms"
        )
