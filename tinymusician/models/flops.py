"""Floating-point operations of a step, and what devices can do: model FLOPs utilization (MFU).

Counted as in PaLM (arXiv 2204.02311, appendix B): 2 operations per weight of a matrix product and position forward, 4
backward, and the products of attention over the whole sequence. What activation checkpointing computes again does not
count.
"""

from __future__ import annotations

from tinymusician.models.tensor_shapes import DecoderShape

_PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""Dense operations per second in bfloat16 with sums in float32 (V100 and T4: float16), from NVIDIA's data sheets."""


def peak_flops(device_name: str) -> float | None:
    """The peak of a device by the name that CUDA reports, such as "NVIDIA A100-SXM4-80GB"; None if it is not listed."""
    words = f" {device_name.replace('-', ' ')} "
    matches = [name for name in _PEAKS if f" {name} " in words]
    return _PEAKS[max(matches, key=len)] if matches else None


def forward_flops(shape: DecoderShape, rows: int, steps: int) -> float:
    """The operations of a decoder's forward pass over `rows` sequences of `steps` positions."""
    width = shape.width
    layer = 6 * width**2 + 2 * width * shape.feed_forward  # without the keys and values of the text: not per position
    weights = shape.layers * layer + shape.codebooks * shape.vocabulary * width
    return rows * steps * (2.0 * weights + 4.0 * shape.layers * width * steps)


def distillation_flops(
    teacher: DecoderShape | None, student: DecoderShape, student_rows: int, rows: int, steps: int
) -> float:
    """A step on `rows` sequences: the teacher forward, with text and without; the student forward and backward.

    The student sees `student_rows`: each sequence once, or twice if its target is `conditional`. A `teacher` that
    computes elsewhere is None.
    """
    by_teacher = forward_flops(teacher, 2 * rows, steps) if teacher is not None else 0.0
    return by_teacher + 3 * forward_flops(student, student_rows, steps)
