"""The CPUs and GPUs of a job's workers: which device, how many CPUs each, and a look at the GPUs before work starts."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tinymusician.errors import ClusterError
from tinymusician.json_types import JsonObject
from tinymusician.recipe import TrainingConfig

Device = Literal["cuda", "cpu"]
_POLL_SECONDS, _TIMEOUT_SECONDS = 5.0, 600.0


@dataclass(frozen=True)
class WorkerResources:
    """What each worker of a job gets: a GPU or none, and CPUs."""

    device: Device
    cpus: int

    @property
    def gpus(self) -> int:
        """1 or 0."""
        return int(self.device == "cuda")


def allocate_resources(
    training: TrainingConfig, workers: int, min_workers: int | None = None, spare_cpus: int = 1
) -> WorkerResources:
    """Connect to the cluster that runs this job, and decide what each worker gets.

    Requested GPUs are waited for: a placement group shows the request to the cluster's autoscaler. If a node was lost,
    this waits for a replacement, unless `min_workers` fit on the remaining nodes, or an autoscaler brings one.
    `spare_cpus` are left to others.

    Raises:
        ClusterError: `training.device` cannot be decided, the cluster is too small and does not grow by itself, or a
            node's torch does not see the GPU that Ray assigned to it.
    """
    import ray

    _connect()
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while True:
        nodes, grows = ray.nodes(), has_autoscaler()
        gpus = int(ray.cluster_resources().get("GPU", 0))
        device = choose_device(training.device, gpus, grows)
        try:
            if training.cpus_per_worker is not None and not grows:
                check_capacity(_alive(nodes), training.cpus_per_worker, int(device == "cuda"), min_workers or workers)
            if device == "cuda":
                check_gpu_count(gpus, workers, grows, min_workers)
                return WorkerResources(device, _gpu_worker_cpus(training.cpus_per_worker, min_workers or workers))
            cpus = [int(node.get("CPU", 0)) for node in _alive(nodes)]
            share = cpus_per_worker(cpus, workers, grows, min_workers, spare_cpus)
            return WorkerResources(device, training.cpus_per_worker or share)
        except ClusterError:
            if grows or all(node["Alive"] for node in nodes) or time.monotonic() > deadline:
                raise
        print("a node was lost: waiting for a replacement", flush=True)
        time.sleep(_POLL_SECONDS)


def _alive(nodes: Sequence[JsonObject]) -> list[dict[str, float]]:
    """The resources of the nodes that live."""
    return [node["Resources"] for node in nodes if node["Alive"]]


def decide_device(device: Literal["auto", "gpu", "cpu"]) -> Device:
    """The device of `training.device` on the cluster that runs this job.

    Raises:
        ClusterError: it cannot be decided.
    """
    import ray

    _connect()
    return choose_device(device, int(ray.cluster_resources().get("GPU", 0)), has_autoscaler())


def _connect() -> None:
    import ray

    if not ray.is_initialized():
        # Ray Train's helpers look for a cluster themselves; with two clusters on a machine they may find the other one.
        address = {name: os.environ[name] for name in ("RAY_ADDRESS",) if name in os.environ}
        environment = {"env_vars": address, "worker_process_setup_hook": "jobs.worker.gloo.choose_interface"}
        ray.init(address="auto", runtime_env=environment, log_to_driver=True, logging_level="WARNING")


def has_autoscaler() -> bool:
    """Whether an autoscaler watches the cluster to which this process is connected: it has written a state."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    version = get_cluster_status(ray.get_runtime_context().gcs_address).stats.autoscaler_version
    return version is not None and int(version) > 0


def choose_device(device: Literal["auto", "gpu", "cpu"], gpus: int, grows: bool) -> Device:
    """The device of `training.device` on a cluster that has `gpus` GPUs now, and may grow.

    Raises:
        ClusterError: `auto`, where GPUs may come later: a run must not train on CPUs because their pool is at zero.
    """
    if device != "auto":
        return "cuda" if device == "gpu" else "cpu"
    if gpus == 0 and grows:
        raise ClusterError(
            "training.device = auto: the cluster has no GPU now, and its autoscaler may add some; "
            "say --gpus N or --set training.device=cpu"
        )
    return "cuda" if gpus else "cpu"


def check_gpu_count(gpus: int, workers: int, grows: bool, min_workers: int | None = None) -> None:
    """Check that a cluster has a GPU for each worker, at least for `min_workers`, or grows by itself.

    Raises:
        ClusterError: it does not.
    """
    if not grows and gpus < (min_workers or workers):
        raise ClusterError(
            f"the cluster has {gpus} GPU(s) for {workers} workers and actors, which need one each, and no autoscaler "
            f"that adds some; ask for fewer, or for training.device=cpu"
        )


def check_capacity(nodes: Sequence[Mapping[str, float]], cpus: int, gpus: int, workers: int) -> None:
    """Check that the nodes have the capacity for workers of `cpus` CPUs and `gpus` GPUs each.

    Raises:
        ClusterError: they have not.
    """
    capacity = 0
    for node in nodes:
        by_cpu = int(node.get("CPU", 0) // cpus)
        capacity += min(by_cpu, int(node.get("GPU", 0) // gpus)) if gpus else by_cpu
    if capacity < workers:
        raise ClusterError(
            f"training.cpus_per_worker = {cpus}: the nodes have the capacity for {capacity} such workers, of {workers}"
        )


def cpus_per_worker(
    nodes: Sequence[int], workers: int, grows: bool = False, min_workers: int | None = None, spare: int = 0
) -> int:
    """The largest number of CPUs that every worker can have on one node; `nodes` are the nodes' numbers of CPUs.

    `spare` CPUs are left to others if more than one per worker is there. One if the nodes do not suffice but an
    autoscaler may add some (`grows`), or if they suffice for `min_workers`.

    Raises:
        ClusterError: there are fewer CPUs than workers.
    """
    for cpus in range(max(nodes, default=0), 0, -1):
        leaves_enough = cpus == 1 or sum(nodes) - cpus * workers >= spare
        if leaves_enough and sum(node // cpus for node in nodes) >= workers:
            return cpus
    if grows or (min_workers is not None and sum(nodes) >= min_workers):
        return 1
    raise ClusterError(f"--workers {workers}: the cluster has {sum(nodes)} CPUs; at most as many workers are allowed")


@dataclass(frozen=True)
class GpuNode:
    """What a worker's process sees on its node; `cpus_per_gpu` is of the whole node."""

    name: str
    torch: str
    sees_gpu: bool
    cpus_per_gpu: int


def check_gpus(nodes: Sequence[GpuNode]) -> None:
    """Check that torch sees the GPUs that Ray assigned.

    Raises:
        ClusterError: on some nodes it does not.
    """
    blind = sorted({f"{node.name} (torch {node.torch})" for node in nodes if not node.sees_gpu})
    if blind:
        raise ClusterError(
            f"node {', '.join(blind)}: Ray assigned a GPU, and torch sees none; install a CUDA build of torch and the "
            f"driver there, or start the node's Ray without GPUs"
        )


def _gpu_worker_cpus(cpus: int | None, workers: int) -> int:
    """Wait until `workers` GPUs are free, and look at their nodes; the CPUs of a worker are `cpus` or its share."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([{"GPU": 1, "CPU": cpus or 1}] * workers)
    try:
        while not group.wait(_POLL_SECONDS):
            pass
        look = ray.remote(num_cpus=1, num_gpus=1)(_look_at_gpu)
        strategies = [PlacementGroupSchedulingStrategy(group, bundle) for bundle in range(workers)]
        nodes = ray.get([look.options(scheduling_strategy=strategy).remote() for strategy in strategies])
    finally:
        remove_placement_group(group)
    check_gpus(nodes)
    return cpus or min(node.cpus_per_gpu for node in nodes)


def _look_at_gpu() -> GpuNode:
    import socket

    import ray
    import torch

    mine = ray.get_runtime_context().get_node_id()
    resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == mine)
    share = max(1, int(resources.get("CPU", 1) // resources["GPU"]))
    return GpuNode(socket.gethostname(), torch.__version__, torch.cuda.is_available(), share)
