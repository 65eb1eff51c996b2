"""Follows a run until it ends: a bar on a terminal, plain lines elsewhere, and why a run waits."""

from __future__ import annotations

import contextlib
import json
import sys
import time

from jobs.cli.output import print_progress, printable
from tinymusician.artifacts.run_state import ENDED, State
from tinymusician.artifacts.run_summary import RunSummary, summarize
from tinymusician.artifacts.runs import RunStore

_POLL_SECONDS = 1.0
_PLAIN_SECONDS = 15.0
_WAITING_SECONDS = 3.0
"""Seconds without progress after which the cluster is asked what the run waits for."""
_ASK_SECONDS = 3.0
_ASK_AGAIN_SECONDS = 30.0
"""Seconds between such questions: before the first stage, and later."""


def follow(run: RunStore, quiet: bool) -> State:
    """Watch a run until it ends, with a bar on a terminal or a line now and then; returns its last state."""
    if quiet or not sys.stderr.isatty():
        return _follow_plainly(run, quiet)
    return _follow_with_bar(run)


class StageClock:
    """Estimates the remaining time of a run's current stage from the steps since it was first seen."""

    def __init__(self) -> None:
        self._stage, self._step, self._began = "", 0, 0.0

    def remaining(self, summary: RunSummary) -> float | None:
        """Seconds until the stage ends; None until two of its steps were seen."""
        now, stage = time.monotonic(), summary.stage or ""
        if stage != self._stage or summary.step < self._step:
            self._stage, self._step, self._began = stage, summary.step, now
        done = summary.step - self._step
        if not summary.steps or done <= 0:
            return None
        return (now - self._began) / done * (summary.steps - summary.step)


class WaitNotice:
    """Notices that a run makes no progress, and asks its cluster for what it waits."""

    def __init__(self, run: RunStore) -> None:
        self._cluster, self._run_id = run.record().cluster, run.id
        self._position, self._text = ("", "", 0), ""
        self._ask_at = 0.0

    def text(self, summary: RunSummary) -> str:
        """Why the run waits, once per reason; empty if it does not, or if that was said already."""
        from jobs.launch.shortage import recorded_shortages, run_holder

        now, position = time.monotonic(), (summary.state, summary.stage or "", summary.step)
        if position != self._position:
            self._position, self._text, self._ask_at = position, "", now + _WAITING_SECONDS
        if summary.state == "WAITING":
            is_new, self._text = summary.message != self._text, summary.message
            return summary.message if is_new else ""
        if now < self._ask_at:
            return ""
        text = ", ".join(str(shortage) for shortage in recorded_shortages(self._cluster, run_holder(self._run_id)))
        self._ask_at = time.monotonic() + (_ASK_AGAIN_SECONDS if summary.stage else _ASK_SECONDS)
        is_new, self._text = text != self._text, text
        return text if is_new else ""


def _follow_plainly(run: RunStore, quiet: bool) -> State:
    from jobs.launch.submit import is_alive

    shown, printed, clock, notice, kl = "", 0.0, StageClock(), WaitNotice(run), LatestKl(run)
    while True:
        summary = summarize(run, is_alive)
        remaining = clock.remaining(summary)
        line = f"{summary.state} {printable(summary.stage or 'starting')} {summary.steps_done}"
        due = time.monotonic() - printed > _PLAIN_SECONDS or summary.state in ENDED
        if not quiet and line != shown and due:
            left = "" if remaining is None or summary.state in ENDED else f", {_minutes(remaining)} left in this stage"
            print(f"{line}{kl.text()}{left}", file=sys.stderr, flush=True)
            shown, printed = line, time.monotonic()
        if summary.state in ENDED:
            return summary.state
        if not quiet and (reason := notice.text(summary)):
            print_progress(reason)
        _pause(run)


def _follow_with_bar(run: RunStore) -> State:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from jobs.launch.submit import is_alive

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    notice, kl = WaitNotice(run), LatestKl(run)
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar, stage = bars.add_task("starting", total=None), ""
        while True:
            summary = summarize(run, is_alive)
            if (summary.stage or "") != stage:
                stage = summary.stage or ""
                bars.reset(bar, total=summary.steps)
            description = f"{printable(stage or 'starting')}{kl.text()}"
            bars.update(bar, description=description, completed=summary.step, total=summary.steps)
            if summary.state in ENDED:
                return summary.state
            if reason := notice.text(summary):
                bars.console.print(printable(reason), highlight=False, markup=False)
            _pause(run)


def _pause(run: RunStore) -> None:
    """Wait a moment; then ask the cluster, in case the job died before it could write its state."""
    from jobs.launch.submit import reconcile

    time.sleep(_POLL_SECONDS)
    reconcile(run)


class LatestKl:
    """The last held-out KL of a run, for people; each look reads only what is new."""

    def __init__(self, run: RunStore) -> None:
        self._reader, self._text = run.metrics_reader(), ""

    def text(self) -> str:
        """Two spaces and the KL; empty before the first."""
        for line in self._reader.read().splitlines():
            with contextlib.suppress(ValueError):  # the rest of a line of rows that a resumed run dropped
                if (kl := json.loads(line).get("held_out/kl")) is not None:
                    self._text = f"  held-out KL {kl:.4f}"
        return self._text


def _minutes(seconds: float) -> str:
    """Such as 1:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
