"""TF32: on GPUs that have it, products of float32 matrices with 10 bits of mantissa, summed in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tf32_products() -> Iterator[None]:
    """Allow TF32 in products of matrices; convolutions have it by default. Without such a GPU, nothing changes."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
