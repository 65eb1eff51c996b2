"""What playing costs: time, processor, memory, arithmetic, energy. Measured in a process of its own, alone.

After the paper's table 4 and figures 4 and 5: inference time, CPU share, memory, GPU memory, FLOPs, model size.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tinymusician.evaluate.generators import Generator, SamplingSettings, TorchGenerator
from tinymusician.runtime.memory import peak_memory

_POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Cost:
    """One clip at a time, medians over the runs.

    `seconds` to play a clip of `length` seconds, `real_time_factor` their ratio, with its lowest and highest run; `cpu`
    processors kept busy; `memory` the most bytes that opening the model and playing took, `gpu_memory` those on the
    GPU; `flops` floating-point operations a second of music (PyTorch models only); `joules` a second of music, all
    processors of the machine, where it reports them. What cannot be had is None.
    """

    length: float
    seconds: float
    real_time_factor: float
    lowest: float
    highest: float
    cpu: float
    memory: int
    gpu_memory: int | None
    flops: float | None
    joules: float | None
    sizes: dict[str, int]

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def measure(generator: Generator, prompts: list[str], settings: SamplingSettings, bare: int = 0) -> Cost:
    """Play each prompt alone, after a short one that does not count; `bare` bytes were held before the model came."""
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
    return Cost(
        length=settings.seconds,
        seconds=wall,
        real_time_factor=wall / settings.seconds,
        lowest=min(walls) / settings.seconds,
        highest=max(walls) / settings.seconds,
        cpu=statistics.median(busy),
        memory=peak_memory() - bare,
        gpu_memory=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        flops=operations(generator, prompts[0], short) if isinstance(generator, TorchGenerator) else None,
        joules=statistics.median(measured) if measured else None,
        sizes=generator.sizes,
    )


def operations(generator: Generator, prompt: str, settings: SamplingSettings) -> float:
    """Floating-point operations a second of music, counted on a short clip: attention over longer ones adds to them.

    Attention is computed by plain products meanwhile: the counter does not know its fused kernel on a CPU.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        generator.generate([prompt], [0], settings)
    return float(counter.get_total_flops() / settings.seconds)


def energy() -> float | None:
    """Joules that the machine's processors have used so far (RAPL), None where that cannot be read."""
    total, available = 0.0, False
    for meter in _POWERCAP.glob("intel-rapl:*"):
        if meter.name.count(":") == 1 and os.access(meter / "energy_uj", os.R_OK):
            total, available = total + int((meter / "energy_uj").read_text()) / 1e6, True
    return total if available else None


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
