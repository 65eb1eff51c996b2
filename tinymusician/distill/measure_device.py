"""Measures what this machine's CPU reaches, for `roofline`: a few seconds of what training consists of."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import torch
from torch import Tensor
from torch.nn import functional

from tinymusician.distill.objective import distillation_loss, mixture
from tinymusician.models.roofline import Cluster, Device
from tinymusician.models.tensor_shapes import DecoderShape

_SECONDS = 0.5
_ROWS = 2048


def measure_cpu(shape: DecoderShape, decode_rows: int) -> Cluster:
    """This machine as one device, for a model of this shape, whose decode steps have `decode_rows` rows."""
    torch.manual_seed(0)
    first, second = torch.randn(shape.feed_forward, shape.width), torch.randn(shape.width, shape.feed_forward)

    def products(rows: int) -> float:
        hidden = torch.randn(rows, shape.width)
        seconds = _seconds(lambda: functional.linear(functional.linear(hidden, first), second))
        return 4.0 * rows * shape.width * shape.feed_forward / seconds

    source = torch.randn(1 << 25)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _seconds(lambda: target.copy_(source))
    teacher = torch.randn(1, shape.codebooks, 64, shape.vocabulary)
    student = torch.randn(1, shape.codebooks, 64, shape.vocabulary, requires_grad=True)
    mask = torch.ones(1, shape.codebooks, 64, dtype=torch.bool)
    weights = mixture("stage_mixed", 0.5)

    def objective() -> None:
        distillation_loss(teacher, student, mask, weights, 2.0).mean().backward()  # type: ignore[no-untyped-call]

    device = Device(
        name="here",
        products=products(_ROWS),
        decode_products=products(decode_rows),
        bandwidth=bandwidth,
        logits=teacher.numel() / _seconds(objective),
        layer_seconds=_layer_seconds(shape),
        memory=float(psutil.virtual_memory().total),
        link=bandwidth,
        network=bandwidth,
        weight_bytes=4,
    )
    return Cluster(device, 1)


def _layer_seconds(shape: DecoderShape) -> float:
    """What a layer takes at one position beside its products: the calls of a dozen small kernels."""
    hidden, scale = torch.randn(1, shape.width), torch.ones(shape.width)

    def kernels() -> Tensor:
        state = hidden
        for _ in range(3):
            state = functional.layer_norm(state, (shape.width,), scale, scale) + hidden
            state = functional.gelu(state).view(1, -1) * scale
        return state

    return _seconds(kernels)


def _seconds(function: Callable[[], object]) -> float:
    """Seconds of a call, after one to warm up."""
    function()
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < _SECONDS:
        function()
        calls += 1
    return (time.perf_counter() - began) / calls
