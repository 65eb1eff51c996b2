"""Workers that read different files at one path refuse to train together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
from torch import multiprocessing

from jobs.worker.context import WorkerContext
from jobs.worker.same_inputs import check_same_inputs, differing_inputs
from tinymusician.errors import ClusterError


def test_the_nodes_of_the_minority_are_named() -> None:
    same = {"teacher.model /w": "ab" * 32, "prompts": "00" * 32}
    other = {**same, "teacher.model /w": "cd" * 32}
    assert differing_inputs([("a", same), ("b", same)]) == []
    (problem,) = differing_inputs([("a", same), ("b", other), ("c", same)])
    assert problem.startswith("teacher.model /w: is sha256:abababababab on node a, c, but sha256:cdcdcdcdcdcd on b;")
    three = [("a", {"x": "1"}), ("b", {"x": "2"}), ("c", {"x": "3"})]
    assert "x: is sha256:1 on node a, but sha256:2 on b, sha256:3 on c" in differing_inputs(three)[0]


def test_one_worker_needs_no_group() -> None:
    check_same_inputs(WorkerContext("file:///none", "r1", 0, 1, "cpu"), {"x": "1"})


def compare(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    context = WorkerContext("file:///none", "r1", rank, 2, "cpu")
    check_same_inputs(context, {"teacher": "11"})
    try:
        check_same_inputs(context, {"teacher": "11", "student": str(rank) * 12})
    except ClusterError as error:
        Path(folder, f"{rank}.txt").write_text(str(error))
    dist.destroy_process_group()


@pytest.mark.slow
def test_all_workers_see_it(tmp_path: Path) -> None:
    multiprocessing.spawn(compare, (str(tmp_path),), nprocs=2)
    messages = {(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)}
    assert len(messages) == 1
    assert "student: is sha256:000000000000 on node" in messages.pop()
