"""A run's metrics: JSON lines in the store, which outlive the cluster."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any, Protocol

from tinymusician.artifacts.store import Store
from tinymusician.errors import NotFoundError

Row = dict[str, Any]
_FLUSH_SECONDS = 5.0


class MetricSink(Protocol):
    """Receives every row, such as TensorBoard's writer."""

    def add(self, row: Row) -> None:
        """Add a row."""

    def flush(self) -> None:
        """Make the rows so far durable."""


class MetricsLog:
    """Rows `{"step": …, NAME: NUMBER}`. A resumed run drops the rows after its checkpoint and appends to the others."""

    def __init__(self, store: Store, key: str, resume_at: int, sinks: Sequence[MetricSink] = ()) -> None:
        self._store, self._key, self._sinks = store, key, sinks
        self._flushed = time.monotonic()
        self._rows = [row for row in read_metrics(store, key) if row["step"] <= resume_at]

    def add(self, row: Row) -> None:
        """Append a row. `flush` makes it durable, and runs by itself every few seconds."""
        self._rows.append({name: _finite(value) for name, value in row.items()})
        for sink in self._sinks:
            sink.add(self._rows[-1])
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write all rows to the store."""
        self._store.put(self._key, "".join(json.dumps(row) + "\n" for row in self._rows).encode())
        for sink in self._sinks:
            sink.flush()
        self._flushed = time.monotonic()


def read_metrics(store: Store, key: str) -> list[Row]:
    """The rows of a run's metrics; none if it has not written any."""
    try:
        return [json.loads(line) for line in store.get(key).decode().splitlines()]
    except NotFoundError:
        return []


def _finite(value: object) -> object:
    """JSON has no NaN or infinity: they become null."""
    if isinstance(value, float):
        return round(value, 7) if math.isfinite(value) else None
    return value
