"""Measures what this machine's CPU reaches, for `roofline`: a few seconds of what training consists of."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import torch
from torch.nn import functional

from tinymusician.distill.objective import distillation_loss, mixture
from tinymusician.models.draw import draw_codes
from tinymusician.models.roofline import ROW_MULTIPLE, TEXT_TOKENS, Cluster, Device
from tinymusician.models.tensor_shapes import DecoderShape
from tinymusician.runtime.sampling import SamplingParams

_SECONDS = 0.5
_ROWS = 2048
_LAYERS = 8
"""Layers that are read in turn, as in a model: together more than a processor's caches hold."""


def measure_cpu(shape: DecoderShape, decode_rows: int, steps: int) -> Cluster:
    """This machine as one device, for a model of this shape that decodes `decode_rows` rows for so many steps."""
    torch.manual_seed(0)
    count = min(shape.layers, _LAYERS)
    layers = torch.randn(count, 2, shape.feed_forward * shape.width)

    def products(rows: int) -> float:
        hidden = torch.randn(rows, shape.width)

        def pass_through() -> None:
            for first, second in layers:
                inner = functional.linear(hidden, first.view(shape.feed_forward, shape.width))
                functional.linear(inner, second.view(shape.width, shape.feed_forward))

        return 2.0 * rows * layers.numel() / _seconds(pass_through)

    source = torch.randn(1 << 25)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _seconds(lambda: target.copy_(source))
    device = Device(
        name="here",
        products=products(_ROWS),
        few_products=tuple((rows, products(rows)) for rows in sorted({2 * ROW_MULTIPLE, decode_rows})),
        bandwidth=bandwidth,
        attention=_attention(shape, decode_rows, steps // 2),
        objective=_objective(shape),
        draws=_draws(shape, decode_rows),
        layer_seconds=_layer_seconds(shape, decode_rows),
        memory=float(psutil.virtual_memory().total),
        link=bandwidth,
        network=bandwidth,
        weight_bytes=4,
    )
    return Cluster(device, 1)


def _objective(shape: DecoderShape) -> float:
    """Logits per second of the training objective, with its gradient."""
    teacher = torch.randn(1, shape.codebooks, 64, shape.vocabulary)
    student = torch.randn(1, shape.codebooks, 64, shape.vocabulary, requires_grad=True)
    mask, weights = torch.ones(1, shape.codebooks, 64, dtype=torch.bool), mixture("stage_mixed", 0.5)

    def objective() -> None:
        distillation_loss(teacher, student, mask, weights, 2.0).mean().backward()  # type: ignore[no-untyped-call]

    return teacher.numel() / _seconds(objective)


def _attention(shape: DecoderShape, rows: int, positions: int) -> float:
    """Bytes per second of keys and values, as the decode loop attends to them."""
    width, count = shape.width // shape.heads, min(shape.layers, _LAYERS)
    queries = torch.randn(rows, shape.heads, 1, width)
    layers = torch.randn(count, 2, rows, shape.heads, 2 * positions, width)

    def attend() -> None:  # to the first half of a cache: the mean over a sequence
        for keys, values in layers[..., :positions, :]:
            (queries @ keys.transpose(2, 3)).softmax(-1) @ values

    return layers.nbytes / 2 / _seconds(attend)


def _draws(shape: DecoderShape, rows: int) -> float:
    """Logits per second from which codes are drawn."""
    logits = torch.randn(rows // 2, shape.codebooks, shape.vocabulary)
    uniforms = torch.rand(rows // 2, shape.codebooks)
    return logits.numel() / _seconds(lambda: draw_codes(logits, uniforms, SamplingParams(1.0, 250)))


def _layer_seconds(shape: DecoderShape, rows: int) -> float:
    """What a layer takes in a decode step beside products and self-attention.

    Three norms and sums, the activation, copies, and the attention of half of the rows to a caption.
    """
    hidden, scale = torch.randn(rows, shape.width), torch.ones(shape.width)
    inner, cache = torch.randn(rows, shape.feed_forward), torch.randn(rows, shape.heads, 2, shape.width // shape.heads)
    text = torch.randn(rows // 2, shape.heads, TEXT_TOKENS, shape.width // shape.heads)
    position = torch.tensor([1])

    def layer() -> None:
        state = hidden
        for _ in range(3):
            state = functional.layer_norm(state, (shape.width,), scale, scale) + hidden
            by_head = state.view(rows, shape.heads, 1, -1)
            cache.index_copy_(2, position, by_head)
            (by_head * 0.5 + 1.0).softmax(-1).reshape(rows, -1)
        (by_head[: rows // 2] @ text.transpose(2, 3)).softmax(-1) @ text
        functional.gelu(inner)

    return _seconds(layer)


def _seconds(function: Callable[[], object]) -> float:
    """Seconds of a call, after one to warm up."""
    function()
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < _SECONDS:
        function()
        calls += 1
    return (time.perf_counter() - began) / calls
