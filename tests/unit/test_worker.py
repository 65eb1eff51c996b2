"""How the cluster's CPUs are shared out."""

from __future__ import annotations

import pytest

from jobs.worker import cpus_a_worker
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
def test_every_worker_finds_room_on_one_node(nodes: list[int], workers: int, cpus: int) -> None:
    """A worker cannot spread over nodes: with two of 8 CPUs, three workers get 4 each, not 16 // 3 = 5."""
    assert cpus_a_worker(nodes, workers) == cpus


def test_more_workers_than_cpus() -> None:
    with pytest.raises(ClusterError, match="--workers 4: the cluster has 3 CPUs"):
        cpus_a_worker([2, 1], 4)
