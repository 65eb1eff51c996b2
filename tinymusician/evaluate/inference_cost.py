"""Measures the cost of generation: time, processors, memory, arithmetic, energy.

It runs in a process of its own, with nothing else beside it. After the paper's table 4 and figures 4 and 5: inference
time, CPU share, memory, GPU memory, FLOPs, model size.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tinymusician.evaluate.generators import Generator, SamplingSettings, TorchGenerator
from tinymusician.evaluate.results import InferenceCost
from tinymusician.runtime.memory import peak_memory

_POWERCAP = Path("/sys/class/powercap")


def measure(generator: Generator, prompts: list[str], settings: SamplingSettings, baseline: int = 0) -> InferenceCost:
    """Generate each prompt alone, after a short warm-up; `baseline` is the memory before loading the model (bytes)."""
    short = SamplingSettings(min(1.0, settings.seconds), settings.guidance, settings.top_k, settings.temperature)
    generator.generate(prompts[:1], [0], short)
    walls, busy, energies = [], [], []
    for number, prompt in enumerate(prompts):
        began, worked, spent = time.perf_counter(), time.process_time(), energy()
        generator.generate([prompt], [number], settings)
        _finish()
        walls.append(time.perf_counter() - began)
        busy.append((time.process_time() - worked) / walls[-1])
        now = energy()
        energies.append(None if now is None or spent is None or now < spent else (now - spent) / settings.seconds)
    measured = [joules for joules in energies if joules is not None]
    wall = statistics.median(walls)
    return InferenceCost(
        length=settings.seconds,
        seconds=wall,
        real_time_factor=wall / settings.seconds,
        lowest=min(walls) / settings.seconds,
        highest=max(walls) / settings.seconds,
        cpu=statistics.median(busy),
        memory=peak_memory() - baseline,
        gpu_memory=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        flops=operations(generator, prompts[0], short) if isinstance(generator, TorchGenerator) else None,
        joules=statistics.median(measured) if measured else None,
        sizes=generator.sizes,
    )


def operations(generator: Generator, prompt: str, settings: SamplingSettings) -> float:
    """Floating-point operations per second of audio, counted on a short clip; attention over longer clips adds to them.

    Attention is computed without fused kernels, which the counter does not know on a CPU.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        generator.generate([prompt], [0], settings)
    return float(counter.get_total_flops() / settings.seconds)


def energy() -> float | None:
    """Joules used so far by the machine's processors (RAPL), None where they cannot be read."""
    total, available = 0.0, False
    for meter in _POWERCAP.glob("intel-rapl:*"):
        if meter.name.count(":") == 1 and os.access(meter / "energy_uj", os.R_OK):
            total, available = total + int((meter / "energy_uj").read_text()) / 1e6, True
    return total if available else None


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
