"""Trainings that hang: when a phase is too long, and who is named."""

from __future__ import annotations

import threading

from jobs.worker.stalls import describe_stalls
from tinymusician.artifacts.run_state import StallReport
from tinymusician.training.watchdog import Stall, Watchdog

NODES = ["a", "a", "b"]


def quick_watchdog() -> tuple[Watchdog, list[Stall], threading.Event]:
    """One that knows how long a step takes; its stalls, and an event that is set with the first."""
    stalls, reported = list[Stall](), threading.Event()

    def on_stall(stall: Stall) -> None:
        stalls.append(stall)
        reported.set()

    watchdog = Watchdog(0.05, on_stall)
    with watchdog.phase("step", 0):
        pass
    return watchdog, stalls, reported


def test_a_phase_that_does_not_end_is_reported_once() -> None:
    """Others may follow it without a report; a phase waits here until it was reported."""
    watchdog, stalls, reported = quick_watchdog()
    with watchdog.phase("step", 1):
        assert reported.wait(60)
    watchdog.close()
    ((phase, step, seconds),) = [(stall.phase, stall.step, stall.seconds) for stall in stalls]
    assert (phase, step) == ("step", 1)
    assert seconds >= 0.05


def test_what_is_usual_is_no_hang() -> None:
    """The first phase of its kind has more time, and nothing is watched between phases or after the end."""
    stalls = list[Stall]()
    watchdog = Watchdog(60, stalls.append)
    for step in range(100):
        with watchdog.phase("validation", step):
            pass
    watchdog.close()
    assert stalls == []


def test_waiting_for_data_is_no_hang() -> None:
    """A pause may take any time; the phase around it goes on afterwards."""
    watchdog, stalls, reported = quick_watchdog()
    with watchdog.phase("step", 1):
        with watchdog.pause():
            assert not reported.wait(0.3)
        assert reported.wait(60)
    watchdog.close()
    assert [(stall.phase, stall.step) for stall in stalls] == [("step", 1)]


def test_who_hangs_is_named() -> None:
    """A process that was stopped reports nothing; a thread that hangs is a step behind, or in another phase."""
    at_step = StallReport(phase="step", step=16, seconds=241.2)
    assert describe_stalls({0: at_step, 2: at_step}, NODES) == (
        "training hangs: worker 0 on node a, for 241 s in the step of step 17, worker 2 on node b, for 241 s in the "
        "step of step 17; no report from worker 1 on node a"
    )
    behind = StallReport(phase="validation", step=15, seconds=250)
    assert describe_stalls({0: at_step, 1: at_step, 2: behind}, NODES) == (
        "training hangs: worker 2 on node b, for 250 s in the validation of step 16"
    )
    alone = describe_stalls({2: behind}, NODES)
    assert alone.startswith(
        "training hangs: worker 2 on node b, for 250 s in the validation of step 16; no report from"
    )
