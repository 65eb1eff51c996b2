"""Allocation of the cluster's CPUs, and messages of worker errors."""

from __future__ import annotations

import errno
import json
import pickle
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from ray.exceptions import OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import OutOfMemoryError as OutOfGpuMemory

from jobs.launch.cluster import check_ray_version
from jobs.launch.submit import failure_reason
from jobs.launch.supervisor import to_user_error
from jobs.worker.node_errors import errors_name_the_node
from jobs.worker.ray_train import RestartBudget
from jobs.worker.resources import GpuNode, check_capacity, check_gpu_count, check_gpus, choose_device, cpus_per_worker
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


def test_a_cpu_is_left_to_others() -> None:
    """Where more than one per worker is there."""
    assert cpus_per_worker([8], 1, spare=1) == 7
    assert cpus_per_worker([2], 1, spare=1) == 1
    assert cpus_per_worker([2], 2, spare=1) == 1
    assert cpus_per_worker([8, 8], 2, spare=1) == 7
    assert cpus_per_worker([8, 8], 1, spare=1) == 8


def test_a_cluster_that_grows() -> None:
    assert cpus_per_worker([0, 4], 8, grows=True) == 1
    assert cpus_per_worker([0, 4], 2, grows=True) == 2, "what is here is taken as it is"
    assert cpus_per_worker([], 3, grows=True) == 1
    check_gpu_count(0, 64, grows=True)


def test_more_workers_than_cpus() -> None:
    with pytest.raises(ClusterError, match="--workers 4: the cluster has 3 CPUs"):
        cpus_per_worker([2, 1], 4)


def test_the_device() -> None:
    """What is asked for; auto never takes CPUs where GPUs may come."""
    assert [choose_device(device, 0, grows=True) for device in ("gpu", "cpu")] == ["cuda", "cpu"]
    assert [choose_device("auto", gpus, grows=False) for gpus in (0, 2)] == ["cpu", "cuda"]
    assert choose_device("auto", 1, grows=True) == "cuda"
    with pytest.raises(ClusterError, match=r"training\.device = auto: .*say --gpus N or --set training\.device=cpu"):
        choose_device("auto", 0, grows=True)


def test_too_few_gpus_are_an_error() -> None:
    check_gpu_count(8, 2, grows=False)
    check_gpu_count(4, 8, grows=False, min_workers=4)
    with pytest.raises(ClusterError, match=r"the cluster has 4 GPU\(s\) for 8 workers and actors.* no autoscaler"):
        check_gpu_count(4, 8, grows=False)


def test_workers_with_more_cpus_than_nodes_have() -> None:
    nodes = [{"CPU": 8, "GPU": 2}, {"CPU": 4}, {}]
    check_capacity(nodes, 4, 0, 3)
    check_capacity(nodes, 4, 1, 2)
    with pytest.raises(
        ClusterError, match=r"cpus_per_worker = 4: the nodes have the capacity for 2 such workers, of 3"
    ):
        check_capacity(nodes, 4, 1, 3)
    with pytest.raises(ClusterError, match="capacity for 1 such workers"):
        check_capacity(nodes, 8, 0, 2)


def test_gpus_that_torch_does_not_see() -> None:
    check_gpus([GpuNode("a", "2.13.0", True, 8)])
    with pytest.raises(ClusterError, match=r"node b \(torch 2\.13\.0\+cpu\): Ray assigned a GPU, and torch sees none"):
        check_gpus([GpuNode("a", "2.13.0", True, 8), *[GpuNode("b", "2.13.0+cpu", False, 8)] * 2])


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


def test_restarts_count_failures_without_a_new_checkpoint() -> None:
    """Older checkpoints are deleted meanwhile; a run that has none yet makes no progress."""
    budget = RestartBudget(2, frozenset())
    for newest in range(20):
        assert budget.allows(frozenset({f"step-{newest}"}))
    assert budget.allows(frozenset({"step-19"}))
    assert not budget.allows(frozenset({"step-19"}))
    assert [RestartBudget(0, frozenset()).allows(frozenset()), RestartBudget(1, frozenset()).allows(frozenset())] == [
        False,
        True,
    ]


def test_a_missing_package_names_the_node() -> None:
    expected = f"^node {re.escape(socket.gethostname())}: its Python has no absent_package; install tinymusician"
    with pytest.raises(ClusterError, match=expected), errors_name_the_node():
        import_module("absent_package.part")


def test_a_full_disk_names_the_node() -> None:
    """/dev/full is a disk without space."""
    with pytest.raises(OSError) as caught, errors_name_the_node(), open("/dev/full", "w") as file:  # noqa: PT011
        file.write("x" * (1 << 20))
    result = str(to_user_error(pickle.loads(pickle.dumps(caught.value))))
    assert result == f"the disk for scratch files: No space left on device on node {socket.gethostname()}"
    with pytest.raises(FileNotFoundError, match=r"^\[Errno 2\] No such file"), errors_name_the_node():
        Path("/absent/file").read_text()


def test_jobs_that_could_not_begin() -> None:
    """What Ray reports of a head with an older Python, or without this package."""
    older = "Job entrypoint command failed with exit code 2, last available logs:\nUnknown option: -P\nusage: python"
    assert "older than 3.11" in failure_reason("FAILED", older)
    absent = "exit code 1, last available logs:\n/usr/bin/python: Error while finding module specification for "
    absent += "'jobs.launch.supervisor' (ModuleNotFoundError: No module named 'pydantic')"
    assert "has no tinymusician; install it on all nodes" in failure_reason("FAILED", absent)
    assert failure_reason("FAILED", "killed\n by x") == "Ray reports the job as FAILED: killed by x"


class OtherRay(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"version": "4", "ray_version": self.server.ray}).encode())  # type: ignore[attr-defined]

    def log_message(self, *words: object) -> None:
        pass


def test_a_cluster_with_another_ray() -> None:
    installed = version("ray")
    with HTTPServer(("127.0.0.1", 0), OtherRay) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        server.ray = installed.rpartition(".")[0] + ".99"  # type: ignore[attr-defined]
        check_ray_version(address)
        server.ray = "2.9.3"  # type: ignore[attr-defined]
        with pytest.raises(ClusterError, match=f"runs Ray 2.9.3, and this package needs {installed}; install that on"):
            check_ray_version(address)
        server.shutdown()
