"""What a worker does when it hangs: it tells the others, says who hangs, and ends, so that the workers start again."""

from __future__ import annotations

import os
import socket
import threading
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
_REPORT_SECONDS = 40.0


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
    """One line: the workers that are behind the others by their reports, and those that report nothing."""
    earliest = min(report.step for report in reports.values())
    behind = {rank: report for rank, report in reports.items() if report.step == earliest}
    lines = [
        f"worker {rank} on node {nodes[rank]}, for {each.seconds:.0f} s in the {each.phase} of step {each.step + 1}"
        for rank, each in sorted(behind.items())
    ]
    silent = [f"worker {rank} on node {nodes[rank]}" for rank in range(len(nodes)) if rank not in reports]
    no_report = f"; no report from {', '.join(silent)}" if silent else ""
    return f"training hangs: {', '.join(lines)}{no_report}"


def _end(run: RunStore, rank: int, nodes: Sequence[str], stall: Stall) -> None:
    """Report a stall, and end this process, whether or not the store responds."""
    reporter = threading.Thread(target=_report, args=(run, rank, nodes, stall), daemon=True)
    reporter.start()
    reporter.join(_REPORT_SECONDS)
    os._exit(_EXIT_CODE)


def _report(run: RunStore, rank: int, nodes: Sequence[str], stall: Stall) -> None:
    run.write_stall(rank, StallReport(phase=stall.phase, step=stall.step, seconds=stall.seconds))
    time.sleep(_OTHERS_SECONDS)
    reports = run.stalls(len(nodes))
    if rank == min(reports):
        print(f"{describe_stalls(reports, nodes)}; the workers start again from the last checkpoint", flush=True)
