"""Allocation of the cluster's CPUs, and messages of worker errors."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from ray.exceptions import OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import OutOfMemoryError as OutOfGpuMemory

from jobs.launch.supervisor import to_user_error
from jobs.worker.resources import cpus_per_worker, has_gpus_for
from tinymusician.errors import ClusterError


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus"),
    [
        ([2], 1, 2),
        ([2], 2, 1),
        ([8, 8], 1, 8),
        ([8, 8], 3, 4),
        ([8, 8], 2, 8),
        ([16, 2], 2, 8),
        ([1, 1, 1], 3, 1),
        ([0, 4], 1, 4),
    ],
)
def test_every_worker_fits_on_one_node(nodes: list[int], workers: int, cpus: int) -> None:
    """A worker cannot spread over nodes: with two of 8 CPUs, three workers get 4 each, not 16 // 3 = 5."""
    assert cpus_per_worker(nodes, workers) == cpus


def test_autoscaler_capacity_is_counted() -> None:
    assert cpus_per_worker([0, 4], 8, max_cpus=36) == 1
    assert cpus_per_worker([0, 4], 2, max_cpus=36) == 2, "what is here is taken as it is"
    with pytest.raises(ClusterError, match="--workers 37: the cluster has 4 CPUs"):
        cpus_per_worker([0, 4], 37, max_cpus=36)


def test_more_workers_than_cpus() -> None:
    with pytest.raises(ClusterError, match="--workers 4: the cluster has 3 CPUs"):
        cpus_per_worker([2, 1], 4)


def test_too_few_gpus_are_an_error() -> None:
    assert has_gpus_for(2, 8)
    assert not has_gpus_for(2, 0)
    assert has_gpus_for(8, 4, min_workers=4), "an elastic run begins with those that are there"
    with pytest.raises(ClusterError, match=r"the cluster has 4 GPU\(s\) for 8 workers and actors"):
        has_gpus_for(8, 4)


def test_gpu_out_of_memory_is_one_line() -> None:
    words = (
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1 GiB is free"
    )
    result = str(to_user_error(WorkerGroupError("", {0: OutOfGpuMemory(words)})))
    assert result.startswith("a GPU of 79.11 GiB ran out of memory, where 2.50 GiB more were needed: lower ")


def test_full_disk_is_one_line(tmp_path: Path) -> None:
    """Writing into a folder that is not there makes safetensors fail as a full disk does: with a kind of its own."""
    full = OSError(errno.ENOSPC, "No space left on device")
    assert str(to_user_error(full)) == "the disk for scratch files: No space left on device"
    with pytest.raises(SafetensorError) as caught:
        save_file({"x": np.zeros(1)}, tmp_path / "none" / "x.safetensors")
    assert str(to_user_error(caught.value)).startswith("a file of tensors cannot be read or written: ")
    assert to_user_error(ValueError("a fault of ours")) is None


def test_machine_out_of_memory_is_one_line() -> None:
    """Ray's memory monitor kills a worker, or all of a job with Ray Train's controller; its words name both figures."""
    words = "4 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.1, ID: ad) "
    killed = OutOfMemoryError(words + "was 22.44GB used / 23.54GB limit (0.953036)\nOOM kill reason: Memory usage")
    for error in (killed, ControllerError(killed), WorkerGroupError("", {1: killed})):
        result = str(to_user_error(error))
        assert result.startswith("a machine of the cluster ran out of memory (22.44GB of 23.54GB): ask for fewer")
        assert "\n" not in result
