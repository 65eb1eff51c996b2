"""The CPUs and GPUs that the workers of a job get from its Ray cluster."""

from __future__ import annotations

import os
import time

from tinymusician.errors import ClusterError

_POLL_SECONDS, _TIMEOUT_SECONDS = 5.0, 600.0


def allocate_resources(workers: int, min_workers: int | None = None) -> tuple[bool, int]:
    """Connect to the cluster that runs this job, and return (whether each worker gets a GPU, CPUs per worker).

    Resources that an autoscaler may add count as well. If a node was lost, this waits for a replacement, unless
    `min_workers` fit on the remaining nodes.

    Raises:
        ClusterError: there are fewer CPUs than workers, or GPUs but fewer of them.
    """
    import ray
    from ray._private.state import state  # Ray has no public function for the autoscaler's limits

    if not ray.is_initialized():
        # Ray Train's helpers look for a cluster themselves; with two clusters on a machine they may find the other one.
        address = {name: os.environ[name] for name in ("RAY_ADDRESS",) if name in os.environ}
        environment = {"env_vars": address, "worker_process_setup_hook": "jobs.worker.gloo.choose_interface"}
        ray.init(address="auto", runtime_env=environment, log_to_driver=True, logging_level="WARNING")
    limits = state.get_max_resources_from_cluster_config() or {}
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while True:
        nodes = ray.nodes()
        gpus = max(ray.cluster_resources().get("GPU", 0), limits.get("GPU", 0))
        try:
            if has_gpus_for(workers, int(gpus), min_workers):
                return True, 1
            cpus = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
            return False, cpus_per_worker(cpus, workers, int(limits.get("CPU", 0)), min_workers)
        except ClusterError:
            if all(node["Alive"] for node in nodes) or time.monotonic() > deadline:
                raise
        print("a node was lost: waiting for a replacement", flush=True)
        time.sleep(_POLL_SECONDS)


def has_gpus_for(workers: int, gpus: int, min_workers: int | None = None) -> bool:
    """Whether a cluster's GPUs suffice for one per worker, at least for `min_workers`. Without any GPU, CPUs are used.

    Raises:
        ClusterError: there are GPUs, but too few. A run that began on GPUs must not continue on CPUs silently.
    """
    if 0 < gpus < (min_workers or workers):
        raise ClusterError(
            f"the cluster has {gpus} GPU(s) for {workers} workers and actors, which need one each; "
            "ask for fewer --workers"
        )
    return gpus > 0


def cpus_per_worker(nodes: list[int], workers: int, max_cpus: int = 0, min_workers: int | None = None) -> int:
    """The largest number of CPUs that every worker can have on one node; `nodes` are the nodes' numbers of CPUs.

    One if the nodes do not suffice but an autoscaler may grow the cluster to `max_cpus`, or if they suffice for
    `min_workers`.

    Raises:
        ClusterError: there are fewer CPUs than workers.
    """
    for cpus in range(max(nodes, default=0), 0, -1):
        if sum(node // cpus for node in nodes) >= workers:
            return cpus
    if max_cpus >= workers or (min_workers is not None and sum(nodes) >= min_workers):
        return 1
    raise ClusterError(f"--workers {workers}: the cluster has {sum(nodes)} CPUs; at most as many workers are allowed")
