"""Logs in parts: what a reader sees, what a write costs, and writers that are killed or whose store fails."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tinymusician.artifacts.append_log import AppendLog, AppendLogReader
from tinymusician.artifacts.background import BackgroundWriter
from tinymusician.artifacts.store import LocalStore
from tinymusician.errors import TransientStoreError
from tinymusician.training.metrics import MetricsLog, read_metrics


class CountingStore(LocalStore):
    """Counts the bytes that are written; refuses them while `is_down`."""

    written, is_down = 0, False

    def put(self, key: str, data: bytes) -> None:
        if self.is_down:
            raise TransientStoreError("down")
        self.written += len(data)
        super().put(key, data)


def lines(first: int, last: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(first, last))


def test_a_reader_gets_every_byte_once(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    log, reader = AppendLog(store, "log", part_bytes=50), AppendLogReader(store, "log")
    assert reader.read() == b""
    seen = b""
    for number in range(100):
        log.append(lines(number, number + 1))
        if number % 3 == 0:
            seen += reader.read()
        if number == 50:  # a writer that was killed; the next one continues
            log = AppendLog(store, "log", part_bytes=50)
    assert seen + reader.read() == lines(0, 100)
    assert AppendLogReader(store, "log").read() == lines(0, 100)
    assert all(entry.size <= 50 for entry in store.list("log/"))


def test_a_write_costs_a_part_at_most(tmp_path: Path) -> None:
    store = CountingStore(tmp_path)
    log, costs = AppendLog(store, "log", part_bytes=1000), []
    for number in range(2000):
        before = store.written
        log.append(lines(number, number + 1))
        costs.append(store.written - before)
    assert max(costs[1000:]) <= 2 * 1000
    assert sum(costs[1000:]) == pytest.approx(sum(costs[:1000]), rel=0.1)


def test_a_store_that_fails_loses_nothing(tmp_path: Path) -> None:
    store = CountingStore(tmp_path)
    log = AppendLog(store, "log", part_bytes=50)
    log.append(lines(0, 10))
    store.is_down = True
    with pytest.raises(TransientStoreError):
        log.append(lines(10, 30))
    store.is_down = False
    log.append(b"")
    assert AppendLogReader(store, "log").read() == lines(0, 30)


@pytest.mark.parametrize("step", [-1, 0, 7, 93, 200])
def test_a_resumed_run_drops_the_rows_after_its_checkpoint(tmp_path: Path, step: int) -> None:
    """Rows in many parts; readers that follow see the new ones."""
    store = LocalStore(tmp_path)
    log = MetricsLog(store, "metrics", -1)
    for number in range(100):
        log.add({"step": number, "text": "x" * 5000})
    log.flush()
    assert len(list(store.list("metrics/"))) > 2
    resumed = MetricsLog(store, "metrics", step)
    resumed.add({"step": step + 1, "again": True})
    resumed.flush()
    rows = read_metrics(store, "metrics")
    assert [row["step"] for row in rows] == [*range(min(step + 1, 100)), step + 1]
    assert rows[-1]["again"]


def test_background_writes() -> None:
    """In order, the last of equal names, without making anybody wait; errors at the next call."""
    writer, done, gate = BackgroundWriter(), list[str](), threading.Event()
    writer.submit("first", lambda: (gate.wait(), done.append("first"))[0])
    for number in range(3):
        writer.submit("progress", lambda number=number: done.append(f"progress {number}"))
    writer.submit("last", lambda: done.append("last"))
    assert done == []
    gate.set()
    writer.drain()
    assert done == ["first", "progress 2", "last"]

    def fail() -> None:
        raise TransientStoreError("down")

    writer.submit("metrics", fail)
    with pytest.raises(TransientStoreError, match="down"):
        writer.drain()
    writer.submit("metrics", lambda: done.append("after"))
    writer.drain()
    assert done[-1] == "after"
