"""A run's metrics: JSON lines in the store, which outlive the cluster. No write depends on how many there are."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

from tinymusician.artifacts.append_log import AppendLog, AppendLogReader
from tinymusician.artifacts.background import BackgroundWriter
from tinymusician.artifacts.store import Store

Row = dict[str, Any]
_FLUSH_SECONDS = 5.0


class MetricSink(Protocol):
    """Receives every row, such as TensorBoard's writer."""

    def add(self, row: Row) -> None:
        """Add a row, without waiting for anything."""

    def flush(self) -> None:
        """Make the rows so far durable; called in the background."""

    def close(self) -> None:
        """Free what the sink holds; no row follows."""


class MetricsLog:
    """Rows `{"step": …, NAME: NUMBER}`, written in the background by one process.

    A resumed run drops the rows after its checkpoint.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        resume_at: int,
        sinks: Sequence[MetricSink] = (),
        writer: BackgroundWriter | None = None,
    ) -> None:
        """`key` is the prefix of an `AppendLog`; `writer` may also have other writes."""
        self._log, self._sinks, self._writer = AppendLog(store, key), sinks, writer or BackgroundWriter()
        self._log.truncate(lambda line: json.loads(line)["step"] <= resume_at)
        self._rows: list[Row] = []
        self._lock, self._flushed = threading.Lock(), time.monotonic()

    def add(self, row: Row) -> None:
        """Append a row, which is written within seconds."""
        row = {name: _finite(value) for name, value in row.items()}
        for sink in self._sinks:
            sink.add(row)
        with self._lock:
            self._rows.append(row)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._writer.submit("metrics", self._write)
            self._flushed = time.monotonic()

    def flush(self) -> None:
        """Wait until all rows are written.

        Raises:
            StoreError: the store did not take them.
        """
        self._writer.submit("metrics", self._write)
        self._writer.drain()

    def close(self) -> None:
        """Close the sinks. Rows that were not flushed are lost."""
        with contextlib.ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)

    def _write(self) -> None:
        with self._lock:
            rows, self._rows = self._rows, []
        self._log.append("".join(json.dumps(row) + "\n" for row in rows).encode())
        for sink in self._sinks:
            sink.flush()


def read_metrics(store: Store, key: str) -> list[Row]:
    """The rows of a `MetricsLog`; none if it has not written any."""
    return [json.loads(line) for line in AppendLogReader(store, key).read().splitlines()]


def _finite(value: object) -> object:
    """JSON has no NaN or infinity: they become null."""
    if isinstance(value, float):
        return round(value, 7) if math.isfinite(value) else None
    return value
