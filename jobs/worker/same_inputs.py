"""Compares what the workers of a run have read before they train: on another node, a path may have other files."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Mapping, Sequence

from jobs.worker.context import WorkerContext
from tinymusician.errors import ClusterError

Inputs = tuple[str, Mapping[str, str]]
"""A worker's node, and the digests of what it has read by name."""


def check_same_inputs(context: WorkerContext, digests: Mapping[str, str]) -> None:
    """Check that all workers of a run have read the same. Every worker must call this.

    Raises:
        ClusterError: some have not; the message names their nodes.
    """
    if context.world == 1:
        return
    import torch.distributed as dist

    everybody: list[Inputs] = [("", {})] * context.world
    dist.all_gather_object(everybody, (socket.gethostname(), dict(digests)))
    if problems := differing_inputs(everybody):
        raise ClusterError("; ".join(problems))


def differing_inputs(workers: Sequence[Inputs]) -> list[str]:
    """A line for each input that is not the same everywhere: where it is which, the majority's first."""
    problems = []
    for name in workers[0][1]:
        nodes: dict[str, set[str]] = {}
        for node, digests in workers:
            nodes.setdefault(digests[name], set()).add(node)
        if len(nodes) > 1:
            counts = Counter(digests[name] for _, digests in workers)
            (usual, _), *others = counts.most_common()
            where = ", ".join(f"sha256:{digest[:12]} on {_listed(nodes[digest])}" for digest, _ in others)
            problems.append(
                f"{name}: is sha256:{usual[:12]} on node {_listed(nodes[usual])}, but {where}; put the same files "
                f"everywhere, and continue with --resume"
            )
    return problems


def _listed(nodes: set[str]) -> str:
    return ", ".join(sorted(nodes))
