"""Measures coverage in every Python process of a test run: pytest's own, subprocesses, Ray's workers, forks.

`make coverage` lets every Python of .venv run this file at its start. A process is measured from its first import of
our own code on: most of Ray's servers never come to that. Ray ends its workers without Python's exit, and tests kill
processes, so each process writes down what it has covered every two seconds, not only at its end. (Coverage's own
COVERAGE_PROCESS_START measures every process from its start, and loses what was not written at its end.)
"""

import _thread
import atexit
import os
import sys
import time

OURS = {"jobs", "serve", "tinymusician"}
PARENTS = []
"""What was measured before a fork: kept, for SQLite's connections must not be closed in a fork."""


class FirstImport:
    """Stands first on sys.meta_path, finds nothing, and begins to measure at the first import of our own code."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OURS and self in sys.meta_path:
            sys.meta_path.remove(self)
            begin()


def begin():
    """Start measuring, into a file of this process' own."""
    import coverage

    measure = coverage.Coverage(config_file=os.environ["PROCESS_COVERAGE_CONFIG"], data_suffix=True)
    measure._warn_no_data = measure._warn_unimported_source = measure._warn_preimported_source = False
    measure.start()
    atexit.unregister(measure._atexit)  # a fork would stop at its end what its parent measures
    atexit.register(measure.save)
    _thread.start_new_thread(keep_saving, (measure,))  # not one of threading's: a test counts those


def keep_saving(measure):
    while measure is type(measure).current():
        time.sleep(2)
        measure.save()


def begin_again():
    """In a fork: what was measured before is the parent's."""
    if "coverage" in sys.modules and (before := sys.modules["coverage"].Coverage.current()) is not None:
        before.stop()
        atexit.unregister(before.save)
        PARENTS.append(before)
        begin()


sys.meta_path.insert(0, FirstImport())
os.register_at_fork(after_in_child=begin_again)
