"""Estimates the cost of a job from the models' shapes, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace

from tinymusician.json_types import JsonObject
from tinymusician.models.component_shapes import component_shapes
from tinymusician.models.shape import shape_of
from tinymusician.models.tensor_shapes import CodecShape, DecoderShape, TextShape
from tinymusician.recipe import LayerSubset, PretrainConfig, Recipe, WidthPrunedStudent

_GIB = 2**30
_ADAM_BYTES = 16
_ACTIVATION_BYTES = 34


def distill_cost(recipe: Recipe, workers: int) -> JsonObject:
    """Parameters, steps, codes and memory per worker; unknown for models that are not available here."""
    training = recipe.training
    teacher = shape_of(recipe.teacher.model)
    student = student_shape(recipe, teacher)
    estimate: JsonObject = {
        "teacher_decoder_parameters": teacher.parameters if teacher else "unknown until its config.json is at hand",
        "student_decoder_parameters": student.parameters if student else "unknown until its config.json is at hand",
        "steps": training.steps,
        "workers": workers,
    }
    estimate |= _component_costs(recipe, teacher, student)
    if teacher and student:
        codes_per_row = frames_of(recipe, teacher) * teacher.codebooks
        estimate["codes_seen"] = training.steps * training.batch_size * training.microbatches * codes_per_row
        estimate["student_share_of_teacher"] = round(student.parameters / teacher.parameters, 3)
        memory = training_memory(recipe, teacher, student, workers, weight_bytes(recipe))
        estimate["memory_per_worker_gib"] = round(memory / _GIB, 2)
        estimate["memory_counts"] = (
            "the peak of sampling and training: weights, caches, gradients, AdamW moments, teacher, logits, "
            "activations; not the text encoder, nor what trains it and the codec"
        )
    return estimate


def _component_costs(recipe: Recipe, teacher: DecoderShape | None, student: DecoderShape | None) -> dict[str, int]:
    """The parameters of all components that a device needs, for a recipe that makes several smaller."""
    shapes = component_shapes(recipe.teacher.model)
    if not recipe.has_small_components or shapes is None or teacher is None or student is None:
        return {}
    estimate = _parameter_counts("teacher", teacher, *shapes)
    text, codec = shapes
    if (text_config := recipe.text_encoder) is not None:
        layers, feed_forward = len(text_config.layers), text_config.feed_forward
        text = replace(text, layers=layers, width=text_config.width, heads=text_config.heads, feed_forward=feed_forward)
    if (codec_config := recipe.codec) is not None:
        codec = replace(codec, filters=codec_config.filters, residual_layers=codec_config.residual_layers)
    return estimate | _parameter_counts("student", student, text, codec)


def _parameter_counts(who: str, decoder: DecoderShape, text: TextShape, codec: CodecShape) -> dict[str, int]:
    projection = 0 if text.width == decoder.width else (text.width + 1) * decoder.width
    counts = {
        "text_encoder": text.parameters,
        "decoder": decoder.parameters,
        "projection": projection,
        "codec_decoder": codec.decoder_parameters,
    }
    estimate = {f"{who}_{part}_parameters": count for part, count in counts.items()}
    return {**estimate, f"{who}_parameters": sum(counts.values())}


def pretrain_cost(recipe: Recipe) -> JsonObject:
    """The cost of training the house band: clips to render, and steps of each model."""
    part = recipe.pretrain or PretrainConfig()
    return {
        "clips_of_five_seconds": part.train_clips + 2 * part.held_out_clips,
        "codec_steps": part.codec_steps,
        "band_large_steps": part.teacher_steps,
        "band_small_steps": part.student_steps,
        "band_clap_steps": part.clap_steps,
        "band_tagger_steps": part.tagger_steps,
    }


def understand_cost(recipe: Recipe) -> JsonObject:
    """Parameters of every component, clips, questions, and what each stage reads."""
    import torch

    from jobs.understand.data import understand_config
    from jobs.understand.shapes import audio_lm_shape, front_end_of
    from tinymusician.models.audio_lm import AudioLM

    config = understand_config(recipe)
    with torch.device("meta"):
        model = AudioLM(audio_lm_shape(config, front_end_of(config)))
    parts = {"encoder": model.audio_encoder, "projector": model.projector, "language_model": model.lm}
    counts = {f"{name}_parameters": sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    pretrain, train, questions = config.pretrain, config.train, config.questions
    has_encoder = config.encoder.model is not None or config.teacher is not None
    masked_steps = 0 if has_encoder else pretrain.steps
    finetune_steps = 0 if has_encoder and not pretrain.finetune_pretrained else pretrain.finetune_steps
    return {
        **counts,
        "parameters": sum(counts.values()),
        "clips": questions.train_clips + questions.validation_clips + questions.test_clips,
        "clips_of_masked_prediction": masked_steps * pretrain.batch_size,
        "clips_of_fine_tuning": finetune_steps * pretrain.batch_size,
        "questions_in_words": train.language_steps * train.batch_size,
        "questions_of_training": train.steps * train.batch_size,
        "questions_of_the_text_only_control": train.text_only_steps * train.batch_size,
    }


def quantize_cost(recipe: Recipe) -> JsonObject:
    """The number of measurements, and the size of the decoder in each precision if its shape is known."""
    config = recipe.quantize
    shape = None if config.model is None or "@" in config.model else shape_of(config.model)
    estimate: JsonObject = {"model": config.model or f"the newest student of {recipe.name}", "plan": config.plan}
    if config.plan == "adaptive":
        estimate["rollouts"] = "every group in every precision: about " + (
            str(len(config.precisions) * (shape.layers + shape.codebooks + 4)) if shape else "three a decoder layer"
        )
    if shape:
        scale_bytes_per_weight = 4 / config.block_size
        for precision, size in (
            ("float32", 4.0),
            ("float16", 2.0),
            ("int8", 1 + scale_bytes_per_weight),
            ("int4", 0.5 + scale_bytes_per_weight),
        ):
            estimate[f"decoder_megabytes_{precision}"] = round(shape.parameters * size / 1e6, 1)
        estimate["memory_per_worker_gib"] = round(3 * 4 * shape.parameters / _GIB, 2)
        estimate["memory_counts"] = (
            "PyTorch's weights, the float32 graphs and those that are tried; not text encoder, codec"
        )
    return estimate


def frames_of(recipe: Recipe, shape: DecoderShape) -> int:
    """The codec frames of a sequence."""
    return round(recipe.sequences.seconds * shape.frame_rate)


def student_shape(recipe: Recipe, teacher: DecoderShape | None) -> DecoderShape | None:
    """The student's shape; for a pruned student, from the teacher's."""
    if isinstance(recipe.student, LayerSubset):
        return _with_layer_count(recipe.student, teacher) if teacher else None
    return shape_of(recipe.student.model)


def _with_layer_count(student: LayerSubset, teacher: DecoderShape) -> DecoderShape:
    shape = teacher.with_layers(len(student.layers))
    if isinstance(student, WidthPrunedStudent):
        shape = replace(shape, width=student.width, heads=student.heads, feed_forward=student.feed_forward)
    return shape


def weight_bytes(recipe: Recipe) -> int:
    """The bytes of a teacher's weight, as far as the recipe says: bfloat16 on GPUs, and where it is asked for."""
    training = recipe.training
    is_half = training.precision == "bfloat16" or (training.precision == "auto" and training.device == "gpu")
    return 2 if is_half else 4


def training_memory(
    recipe: Recipe, teacher: DecoderShape, student: DecoderShape, workers: int, teacher_bytes: int
) -> float:
    """The approximate peak memory of a worker in bytes: for sampling from the teacher, or for training.

    Sampling has keys and values of every layer, twice with guidance, in the type of the products, and the teacher's
    weights in it beside those in float32; so has the report at the end, where the teacher samples too, whatever the
    source of its signals. A tensor-parallel teacher is divided among its workers. In training, the teacher has
    `teacher_bytes` for a weight. AdamW in float32 takes 16 bytes per parameter: weight 4, gradient 4, moments 8. ZeRO 1
    divides the moments by the workers, 2 also the gradients, 3 also the weights. A layer takes about 34 bytes of
    activations per step and channel (arXiv 2205.05198, eq. 2, without the attention matrix, which is never stored
    whole); with activation checkpointing, only its input of 4, and one layer at a time the rest.
    """
    training = recipe.training
    shared = {0: 0, 1: 8, 2: 12, 3: 16}[training.zero_stage]
    student_bytes = student.parameters * (_ADAM_BYTES - shared + shared / workers)
    passes = 2 if recipe.teacher.target == "conditional" else 1
    length = frames_of(recipe, teacher) + student.codebooks
    steps = training.batch_size * passes * length
    logits = 3 * 4 * steps * student.codebooks * student.vocabulary
    layer, whole = _ACTIVATION_BYTES * steps * student.width, 4 * steps * student.width * student.layers
    activations = whole + layer if training.activation_checkpointing else layer * student.layers
    caches = 2 * recipe.sequences.sampling_batch_size * length * 2 * teacher_bytes * teacher.width * teacher.layers
    copies = 4 + (teacher_bytes if teacher_bytes < 4 else 0)
    sampling = (copies * teacher.parameters + caches) / recipe.teacher.tensor_parallel_size
    is_online = recipe.signals.source == "online"
    at_hand = teacher_bytes * teacher.parameters / recipe.teacher.tensor_parallel_size if is_online else 0
    return max(student_bytes + at_hand + logits + activations, sampling)
