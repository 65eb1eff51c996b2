"""The share of a step in which workers communicate."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from jobs.examples.all_reduce import bus_bandwidth
from tests.s3_server import free_port
from tinymusician.training.communication import communication_share, covered


def test_intervals_that_overlap_count_once() -> None:
    assert covered([]) == 0
    assert covered([(5, 7), (0, 2), (1, 3), (6, 6.5), (9, 10)]) == 6


def measure(rank: int, port: int, out: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo")
    values, device = torch.zeros(1_000_000), torch.device("cpu")
    shares = (
        communication_share(lambda: values.sin(), device),
        communication_share(lambda: dist.all_reduce(values), device),
    )
    torch.save(shares, f"{out}-{rank}.pt")
    dist.barrier()  # a process that ends while the other one communicates would abort it
    dist.destroy_process_group()


def test_collectives_are_measured(tmp_path: Path) -> None:
    """None without one; a step that is nothing else has some."""
    port, context = free_port(), multiprocessing.get_context("spawn")
    workers = [context.Process(target=measure, args=(rank, port, str(tmp_path / "share"))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    for rank in range(2):
        alone, together = torch.load(tmp_path / f"share-{rank}.pt")
        assert alone == 0
        assert 0 < together <= 1


def test_all_reduce_of_two_processes_is_measured() -> None:
    words = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "jobs.examples.all_reduce",
        "1",
    ]
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, check=False)
    match = re.search(r"2 workers, gloo: 1 MB in ([\d.]+) ms, bus bandwidth [\d.]+ GB/s", ended.stdout)
    assert match is not None, ended.stderr
    assert bus_bandwidth(8_000_000_000, 0.02, 8) == pytest.approx(700e9), "7/4 of the bytes pass each link"
