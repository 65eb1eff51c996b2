"""What a checkpoint costs a training: the time in which no step runs, and host memory.

    python -m benchmarks.checkpoint [--size small] [--seconds 60] [--checkpoints 3]

A decoder of a MusicGen's shape, with random weights and AdamW's moments, trains in one process on the CPU and writes
checkpoints to a real S3 server (Swift), one every `--seconds`. The server has a processor, and the training all others.
The first checkpoint allocates its buffer.

    state_gb                     weights and moments in float32, 12 bytes for each parameter
    stall_seconds_first          time in which no step ran, for the first checkpoint
    stall_seconds                the longest of the later ones
    stall_share                  the same, over `--seconds`
    write_seconds                until the checkpoint is valid
    step_seconds_alone, _beside  of a step, while nothing and while something is written
    memory_share                 host memory beyond that of the training, over the state
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import boto3
import psutil
import torch

from benchmarks.report import report
from benchmarks.shapes import DECODERS, musicgen
from tests.s3_server import s3_server
from tinymusician.artifacts.s3 import S3Store
from tinymusician.runtime.memory import peak_memory, reset_peak_memory
from tinymusician.training.checkpoint import CheckpointManager
from tinymusician.training.engine import AdamConfig
from tinymusician.training.torch_engine import TorchEngine


class Training:
    """Steps of a decoder on random codes."""

    def __init__(self, size: str, frames: int) -> None:
        model = musicgen(size).decoder  # type: ignore[arg-type]
        self.engine = TorchEngine(model.float().train(), AdamConfig())
        width = model.config.hidden_size
        self._codes = torch.randint(0, 2048, (4, frames), generator=torch.Generator().manual_seed(0))
        self._text = torch.randn(1, 8, width, generator=torch.Generator().manual_seed(1))

    def step(self) -> float:
        """One step; returns its seconds."""
        began = time.perf_counter()
        logits = self.engine(self._codes, None, None, self._text).logits
        self.engine.step(logits.float().square().mean(), 1e-5)
        return time.perf_counter() - began


def measure(training: Training, checkpoints: CheckpointManager, seconds: float, count: int) -> dict[str, float]:
    """Write checkpoints beside the training."""
    alone, beside, stalls, writes = [training.step() for _ in range(3)][1:], [], [], []
    before = reset_peak_memory()
    for number in range(count):
        began = time.perf_counter()
        checkpoints.save(training.engine, number, {})
        stalls.append(time.perf_counter() - began)
        is_valid = False
        while time.perf_counter() - began < seconds or not is_valid:
            taken = training.step()
            if checkpoints.is_writing:
                beside.append(taken)
            elif not is_valid:
                is_valid = True
                writes.append(time.perf_counter() - began)
            else:
                alone.append(taken)
        checkpoints.drain()
    state = sum(spec.nbytes for spec in training.engine.specs())
    return {
        "state_gb": state / 1e9,
        "stall_seconds_first": stalls[0],
        "stall_seconds": max(stalls[1:]),
        "stall_share": max(stalls[1:]) / seconds,
        "write_seconds": max(writes),
        "step_seconds_alone": statistics.median(alone),
        "step_seconds_beside": statistics.median(beside),
        "memory_share": (peak_memory() - before) / state,
    }


def _separate_processors() -> None:
    """Give the server the last processor, and the training all others: as if each had a machine of its own."""
    *others, last = psutil.Process().cpu_affinity()
    for process in psutil.Process().children():
        process.cpu_affinity([last])
    psutil.Process().cpu_affinity(others)
    torch.set_num_threads(len(others))


def main() -> None:
    """Measure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", choices=DECODERS, default="small")
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--checkpoints", type=int, default=3)
    options.add_argument("--frames", type=int, default=50)
    chosen = options.parse_args()
    training = Training(chosen.size, chosen.frames)
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder)) as server:
        os.environ["AWS_ENDPOINT_URL"], os.environ["AWS_DEFAULT_REGION"] = server.endpoint, "us-east-1"
        os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = server.access_key, server.secret_key
        _separate_processors()
        boto3.client("s3").create_bucket(Bucket="bench")
        checkpoints = CheckpointManager(S3Store("bench", "run"), "checkpoints", "kl")
        figures = measure(training, checkpoints, chosen.seconds, chosen.checkpoints)
    report("checkpoint", figures, vars(chosen))


if __name__ == "__main__":
    main()
