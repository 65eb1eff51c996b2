"""Huge pages change the location of memory and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tinymusician.runtime.hugepages import use_large_pages


def in_large_pages() -> int:
    lines = Path("/proc/self/smaps").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_loaded_files_stay_in_memory() -> None:
    array = np.random.default_rng(0).integers(0, 255, 64 * 2**20, np.uint8)
    total, before = int(array.sum()), in_large_pages()
    use_large_pages()
    assert int(array.sum()) == total
    assert in_large_pages() >= before
