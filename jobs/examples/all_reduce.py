"""Measures an all-reduce between the processes of `torch.distributed.run`: what gradients have to pass in each step.

    python -m torch.distributed.run --standalone --nproc-per-node 8 -m jobs.examples.all_reduce [MEGABYTES]

The bandwidth of the bus is that of nccl-tests: bytes, times 2 (n - 1) / n, over the time.
"""

from __future__ import annotations

import os
import sys
import time

import torch
import torch.distributed as dist

_WARMUP, _REPEATS = 3, 10


def bus_bandwidth(count: int, seconds: float, workers: int) -> float:
    """Bytes per second that each link carries in an all-reduce of `count` bytes, as nccl-tests defines it."""
    return 2 * (workers - 1) / workers * count / seconds


def measure(megabytes: int, device: torch.device) -> float:
    """The seconds of one all-reduce of bfloat16 numbers; all processes call this."""
    numbers = torch.ones(megabytes * 500_000, dtype=torch.bfloat16, device=device)
    for index in range(_WARMUP + _REPEATS):
        if index == _WARMUP:
            _synchronize(device)
            began = time.perf_counter()
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    _synchronize(device)
    return (time.perf_counter() - began) / _REPEATS


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure, and let the first process print the result."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend)
    seconds, workers = measure(megabytes, device), dist.get_world_size()
    if dist.get_rank() == 0:
        speed = bus_bandwidth(megabytes * 1_000_000, seconds, workers) / 1e9
        print(
            f"{workers} workers, {backend}: {megabytes} MB in {1000 * seconds:.1f} ms, bus bandwidth {speed:.1f} GB/s"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
