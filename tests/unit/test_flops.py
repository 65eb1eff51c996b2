"""Operations of a step against PyTorch's own count, and devices by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import write_tiny_musicgen
from tinymusician.models.conditional_decoder import ConditionedDecoder
from tinymusician.models.flops import distillation_flops, forward_flops, peak_flops
from tinymusician.models.musicgen import load_musicgen
from tinymusician.models.shape import shape_of


def test_forward_flops_equal_pytorchs_count(tmp_path: Path) -> None:
    """But for what does not grow with the steps, the text's projections, and its attention: a single token."""
    folder = write_tiny_musicgen(tmp_path / "model")
    model, shape = load_musicgen(str(folder)), shape_of(str(folder))
    model.decoder.set_attn_implementation("eager")  # PyTorch does not count the fused kernel of CPUs
    assert shape is not None
    rows, steps, width = 3, 50, shape.width
    inputs, states = torch.zeros(rows, shape.codebooks, steps, dtype=torch.long), torch.zeros(rows, 1, shape.text)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ConditionedDecoder(model)(inputs, states, torch.ones(rows, 1))
    text = rows * (2 * shape.layers * 2 * width**2 + (2 * width * shape.text if shape.text != width else 0))
    text += 4 * rows * steps * shape.layers * width
    assert counter.get_total_flops() - text == pytest.approx(forward_flops(shape, rows, steps))
    once, twice = (distillation_flops(shape, shape, rows * passes, rows, steps) for passes in (1, 2))
    assert twice - once == pytest.approx(3 * forward_flops(shape, rows, steps))


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("AMD Instinct MI300X", None),
    ],
)
def test_devices_by_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
