"""Plans a distillation on devices that need not be here: time, bytes and memory, by `tinymusician.models.roofline`.

Counted are sampling, precomputed signals, steps, validations and gradient sums. Not counted are the start of workers,
downloads, the text encoder, the components that `text_encoder` and `codec` train, and the report at the end.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from jobs.launch.estimate import frames_of, student_shape, training_memory
from jobs.launch.submit import check_workers
from tinymusician.data.prompts import load_prompts, texts_of
from tinymusician.errors import RecipeError
from tinymusician.json_types import JsonObject
from tinymusician.models.roofline import (
    Cluster,
    Device,
    device_names,
    forward_seconds,
    objective_seconds,
    parse_cluster,
    reduce_seconds,
    sampling_seconds,
    update_seconds,
)
from tinymusician.models.shape import shape_of
from tinymusician.models.tensor_shapes import DecoderShape
from tinymusician.recipe import CachedSignalsConfig, Recipe

HERE = "here"
_GIB = 2**30
_CHECKPOINTS = 3
"""Checkpoints that the store keeps: the newest two and the best."""
_BACKWARD = 2.0
"""A backward pass takes twice the time of the forward pass."""


@dataclass(frozen=True)
class Plan:
    """What a distillation takes: seconds, bytes in the store, and GiB of a device's memory."""

    device: str
    devices: int
    sampling_seconds: float
    signals_seconds: float
    step_seconds: float
    training_seconds: float
    validation_seconds: float
    device_hours: float
    samples_bytes: int
    signals_bytes: int
    checkpoints_bytes: int
    memory_gib: float
    device_memory_gib: float

    @property
    def seconds(self) -> float:
        """All of it, one after the other."""
        return self.sampling_seconds + self.signals_seconds + self.training_seconds + self.validation_seconds

    def facts(self) -> JsonObject:
        """For scripts."""
        return {**asdict(self), "seconds": self.seconds}

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"{self.devices} x {self.device}: {_duration(self.seconds)}, {self.device_hours:.2f} device hours",
            f"sampling {_duration(self.sampling_seconds)}, precomputed signals {_duration(self.signals_seconds)}, "
            f"training {_duration(self.training_seconds)} ({self.step_seconds:.3g} s per step), "
            f"validation {_duration(self.validation_seconds)}",
            f"in the store: samples {self.samples_bytes / 1e9:.3g} GB, signals {self.signals_bytes / 1e9:.3g} GB, "
            f"checkpoints {self.checkpoints_bytes / 1e9:.3g} GB",
            f"memory per device {self.memory_gib:.1f} of {self.device_memory_gib:.0f} GiB",
        ]


def plan_distill(recipe: Recipe, on: str) -> Plan:
    """The plan on a cluster by name, such as `h100x8`, or on this machine: `here`.

    Raises:
        RecipeError: there is no such device, the models' shapes are not known, or it needs more memory than a device
            has.
        RunError: there are more devices than microbatches.
        DataError: the prompts cannot be read here.
    """
    teacher = shape_of(recipe.teacher.model)
    student = student_shape(recipe, teacher)
    if teacher is None or student is None:
        raise RecipeError("--on: the models' shapes are not known; give folders, artifacts or released models")
    cluster = _cluster(recipe, on, teacher)
    check_workers("distill", recipe, cluster.count)
    plan = _plan(recipe, cluster, teacher, student)
    if plan.memory_gib > plan.device_memory_gib:
        raise RecipeError(
            f"--on {on}: {plan.memory_gib:.1f} GiB per device are needed, and a {cluster.device.name} has "
            f"{plan.device_memory_gib:.0f}; lower training.batch_size or sequences.sampling_batch_size, or set "
            "training.activation_checkpointing, training.zero_stage or teacher.tensor_parallel_size"
        )
    return plan


def _cluster(recipe: Recipe, on: str, teacher: DecoderShape) -> Cluster:
    if on == HERE:
        from tinymusician.distill.measure_device import measure_cpu

        steps = frames_of(recipe, teacher) + teacher.codebooks - 1
        return measure_cpu(teacher, 2 * recipe.sequences.sampling_batch_size, steps)
    cluster = parse_cluster(on)
    if cluster is None:
        raise RecipeError(
            f"--on {on!r}: allowed are here, or DEVICE[xN[xM]] such as h100x8; {', '.join(device_names())}"
        )
    return cluster


def _plan(recipe: Recipe, cluster: Cluster, teacher: DecoderShape, student: DecoderShape) -> Plan:
    training, device, count = recipe.training, cluster.device, cluster.count
    frames, passes = frames_of(recipe, teacher), 2 if recipe.teacher.passes == "conditional" else 1
    prompts = load_prompts(recipe.sequences.prompts)
    held_out = len(texts_of(prompts, "validation"))
    sequences = {split: len(texts_of(prompts, split)) for split in ("train", "validation", "test")}
    sequences["train"] *= recipe.sequences.samples_per_prompt
    total, steps = sum(sequences.values()), frames + teacher.codebooks - 1
    is_cached = isinstance(recipe.signals, CachedSignalsConfig)
    signals = forward_seconds(device, teacher, 2, steps)
    rows, microbatches = training.batch_size, -(-training.microbatches // count)
    on_teacher = 0.0 if is_cached else rows * signals
    on_student = (1 + _BACKWARD) * forward_seconds(device, student, passes * rows, steps)
    objective = objective_seconds(device, student, passes * rows, steps)
    update = update_seconds(device, student.parameters) + reduce_seconds(cluster, student.parameters, count)
    step = microbatches * (on_teacher + on_student + objective) + update
    validated = forward_seconds(device, student, passes, steps) + objective_seconds(device, student, passes, steps) / 2
    validations = 1 + math.ceil(training.steps / training.validate_every)
    validation = validations * held_out * (validated + (0.0 if is_cached else signals))
    sampling = _sampling(recipe, device, teacher, sequences, frames) / count
    precomputed = (sequences["train"] + held_out) * signals / count if is_cached else 0.0
    positions = steps * teacher.codebooks
    seconds = sampling + precomputed + training.steps * step + validation
    return Plan(
        device=device.name,
        devices=count,
        sampling_seconds=sampling,
        signals_seconds=precomputed,
        step_seconds=step,
        training_seconds=training.steps * step,
        validation_seconds=validation,
        device_hours=seconds * count / 3600,
        samples_bytes=total * frames * teacher.codebooks * 2,
        signals_bytes=(total - sequences["test"]) * passes * positions * _logit_bytes(recipe, teacher),
        checkpoints_bytes=_CHECKPOINTS * 12 * student.parameters,
        memory_gib=training_memory(recipe, teacher, student, count, device.weight_bytes) / _GIB,
        device_memory_gib=device.memory / _GIB,
    )


def _sampling(recipe: Recipe, device: Device, teacher: DecoderShape, sequences: dict[str, int], frames: int) -> float:
    """Seconds of one device for all sequences, shard by shard, in batches."""
    config, seconds = recipe.sequences, 0.0
    passes = 1 if recipe.teacher.guidance_scale == 1 else 2
    for split, count in sequences.items():
        shard = config.prompts_per_shard * (config.samples_per_prompt if split == "train" else 1)
        for first in range(0, count, shard):
            left = min(shard, count - first)
            for start in range(0, left, config.sampling_batch_size):
                batch = min(config.sampling_batch_size, left - start)
                seconds += sampling_seconds(device, teacher, batch, frames, passes)
    return seconds


def _logit_bytes(recipe: Recipe, teacher: DecoderShape) -> int:
    """Bytes of a position's logits in a shard; 0 if there are none."""
    signals = recipe.signals
    if not isinstance(signals, CachedSignalsConfig):
        return 0
    return 2 * teacher.vocabulary if signals.top_k is None else 4 * signals.top_k + 2


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"
