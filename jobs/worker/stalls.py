"""What a worker does when it hangs: it tells the others, says who hangs, and ends, so that the workers start again."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from functools import partial

from jobs.worker.context import WorkerContext
from tinymusician.artifacts.run_state import StallReport
from tinymusician.artifacts.runs import RunStore
from tinymusician.training.watchdog import Stall, Watchdog

_EXIT_CODE = 75
_OTHERS_SECONDS = 10.0
"""For the other workers' reports: all of them stop in the same step."""


def start_watchdog(context: WorkerContext, nodes: Sequence[str]) -> Watchdog:
    """Watch this worker; `nodes` are the names of all workers' nodes, by rank."""
    seconds = context.recipe.training.hang_seconds
    context.run.clear_stall(context.rank)
    return Watchdog(seconds, partial(_end, context.run, context.rank, nodes))


def worker_nodes(context: WorkerContext) -> list[str]:
    """The names of all workers' nodes, by rank. Every worker must call this."""
    import torch.distributed as dist

    nodes = [socket.gethostname()] * context.world
    if context.world > 1:
        dist.all_gather_object(nodes, socket.gethostname())
    return nodes


def describe_stalls(reports: Mapping[int, StallReport], nodes: Sequence[str]) -> str:
    """One line: the workers that do not answer, or else those that are behind the others."""
    silent = [rank for rank in range(len(nodes)) if rank not in reports]
    if silent:
        since = max(report.seconds for report in reports.values())
        who = ", ".join(f"worker {rank} on node {nodes[rank]}" for rank in silent)
        return f"no step for {since:.0f} s: {who} does not answer"
    earliest = min(report.step for report in reports.values())
    behind = {rank: report for rank, report in reports.items() if report.step == earliest}
    lines = [
        f"worker {rank} on node {nodes[rank]}, for {each.seconds:.0f} s in the {each.phase} of step {each.step + 1}"
        for rank, each in sorted(behind.items())
    ]
    who = ", ".join(lines)
    return f"training hangs: {who}"


def _end(run: RunStore, rank: int, nodes: Sequence[str], stall: Stall) -> None:
    """Report a stall, wait for the others' reports, and end this process."""
    run.write_stall(rank, StallReport(phase=stall.phase, step=stall.step, seconds=stall.seconds))
    time.sleep(_OTHERS_SECONDS)
    reports = run.stalls(len(nodes))
    if rank == min(reports):
        print(f"{describe_stalls(reports, nodes)}; the workers start again from the last checkpoint", flush=True)
    os._exit(_EXIT_CODE)
