"""Measures coverage in every Python process of a test run: pytest's own, subprocesses, Ray's workers, forks.

`make coverage` lets every Python of .venv run this file at its start. Ray ends its workers without Python's exit, and
tests kill processes, so each process writes down what it has covered every second, not only at its end.
"""

import atexit
import os
import threading
import time

import coverage

PARENTS: list[coverage.Coverage] = []
"""What was measured before a fork: kept, for SQLite's connections must not be closed in a fork."""


def begin() -> None:
    """Start measuring, into a file of this process' own."""
    measure = coverage.Coverage(config_file=os.environ["COVERAGE_PROCESS_START"], data_suffix=True)
    measure._warn_no_data = measure._warn_unimported_source = measure._warn_preimported_source = False
    measure.start()
    atexit.unregister(measure._atexit)  # a fork would stop at its end what its parent measures
    atexit.register(measure.save)
    threading.Thread(target=keep_saving, args=(measure,), daemon=True).start()


def keep_saving(measure: coverage.Coverage) -> None:
    while measure is coverage.Coverage.current():
        time.sleep(1)
        measure.save()


def begin_again() -> None:
    """In a fork: what was measured before is the parent's."""
    if (before := coverage.Coverage.current()) is not None:
        before.stop()
        atexit.unregister(before.save)
        PARENTS.append(before)
    begin()


begin()
os.register_at_fork(after_in_child=begin_again)
