"""Measures how long a step communicates, by PyTorch's profiler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile

Interval = tuple[float, float]


def communication_share(function: Callable[[], object], device: torch.device) -> float:
    """Run `function`; the share of its time in which a collective runs, the wait for other workers included.

    On a GPU these are NCCL's kernels, whether or not others run beside them; on a CPU gloo's work.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities) as profiler:
        began = time.perf_counter()
        function()
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
    kind = ("CUDA", "nccl") if on_gpu else ("CPU", "gloo:")
    collectives = (
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type.name == kind[0] and event.name.startswith(kind[1])
    )
    return min(1.0, covered(collectives) / 1e6 / seconds)


def covered(intervals: Iterable[Interval]) -> float:
    """The length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(intervals):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total
