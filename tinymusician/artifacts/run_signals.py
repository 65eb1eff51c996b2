"""What the processes of a run tell while it runs: that they live, how far they are, and what they hold."""

from __future__ import annotations

import contextlib
from datetime import datetime

from tinymusician.artifacts.run_files import RunFiles
from tinymusician.artifacts.run_state import Allocation, Progress, StallReport
from tinymusician.errors import NotFoundError


class RunSignals(RunFiles):
    """Signals of a run's supervisor, driver and workers. `RunStore` lists the files."""

    def heartbeat(self) -> None:
        """Record that the supervisor is alive."""
        self.store.put(self.key("heartbeat.txt"), self._clock().isoformat().encode())

    def last_heartbeat(self) -> datetime | None:
        """The time of the last heartbeat."""
        try:
            return datetime.fromisoformat(self.store.get(self.key("heartbeat.txt")).decode())
        except NotFoundError:
            return None

    def report_progress(self, stage: str, step: int, steps: int) -> None:
        """Record how many steps of a stage are done."""
        self._write("progress.json", Progress(stage=stage, step=step, steps=steps))

    def progress(self) -> Progress | None:
        """The last reported progress."""
        try:
            return self._read("progress.json", Progress)
        except NotFoundError:
            return None

    def write_allocation(self, allocation: Allocation) -> None:
        """Record what the run's workers hold."""
        self._write("allocation.json", allocation)

    def allocation(self) -> Allocation | None:
        """What the run's workers hold; None before they have anything."""
        try:
            return self._read("allocation.json", Allocation)
        except NotFoundError:
            return None

    def write_notice(self) -> None:
        """Record that a machine of this attempt will be taken away."""
        self.store.put(self.key("notice.txt"), self._clock().isoformat().encode())

    def take_notice(self) -> bool:
        """Whether a machine was going to be taken away; forgets it."""
        had_notice = self._text("notice.txt") is not None
        self.store.delete(self.key("notice.txt"))
        return had_notice

    def write_stall(self, rank: int, report: StallReport) -> None:
        """Record that a worker makes no progress."""
        self._write(_stall_name(rank), report)

    def clear_stall(self, rank: int) -> None:
        """Forget what a worker recorded before."""
        self.store.delete(self.key(_stall_name(rank)))

    def stalls(self, workers: int) -> dict[int, StallReport]:
        """The reports of the workers that make no progress, by rank."""
        reports = {}
        for rank in range(workers):
            with contextlib.suppress(NotFoundError):
                reports[rank] = self._read(_stall_name(rank), StallReport)
        return reports


def _stall_name(rank: int) -> str:
    return f"stalls/{rank}.json"
