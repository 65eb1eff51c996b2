"""A run is WAITING while its workers wait for resources, as its supervisor sees it."""

from __future__ import annotations

from pathlib import Path

from jobs.launch.shortage import Shortage
from jobs.launch.wait_state import WaitState
from tests.unit.test_runs import record
from tinymusician.artifacts.run_state import RunResult
from tinymusician.artifacts.run_summary import summarize
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore

GPUS = Shortage("GPU", 2, 0, {})
FEWER = Shortage("GPU", 1, 1, {})


def test_a_run_waits_and_proceeds(tmp_path: Path) -> None:
    run = RunStore(LocalStore(tmp_path), "r1")
    run.write_record(record("r1"))
    run.submit()
    run.start()
    lacking: list[Shortage] = []
    state = WaitState(run, lambda: True, lambda: lacking)
    state.update()
    assert summarize(run).state == "RUNNING"
    for shortage in (GPUS, FEWER):
        lacking[:] = [shortage]
        state.update()
        assert (summarize(run).state, summarize(run).message) == ("WAITING", str(shortage))
    lacking.clear()
    state.update()
    assert (summarize(run).state, summarize(run).message) == ("RUNNING", "")


def test_progress_is_no_waiting(tmp_path: Path) -> None:
    """Another stage of the run may have its resources: the cluster is not asked then."""
    run = RunStore(LocalStore(tmp_path), "r1")
    run.start()
    questions = []
    state = WaitState(run, lambda: True, lambda: questions.append(1) or [GPUS])
    run.report_progress("samples", 1, 2)
    state.update()
    assert not questions
    state.update()
    assert questions
    assert run.status().state == "WAITING"


def test_an_older_supervisor_writes_nothing(tmp_path: Path) -> None:
    run = RunStore(LocalStore(tmp_path), "r1")
    run.start()
    WaitState(run, lambda: False, lambda: [GPUS]).update()
    assert run.status().state == "RUNNING"


def test_a_waiting_run_ends(tmp_path: Path) -> None:
    run = RunStore(LocalStore(tmp_path), "r1")
    for end in (lambda: run.fail("x"), run.stop, lambda: run.succeed(RunResult())):
        run.start()
        run.wait("for GPUs")
        end()
