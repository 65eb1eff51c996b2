"""A run's metrics: one JSON object a line, kept whole in the store, so they can be read when the cluster is gone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from tinymusician.artifacts.store import Store
from tinymusician.errors import NotFound

Row = dict[str, Any]


class MetricsLog:
    """Rows `{"step": …, NAME: NUMBER}`. A resumed run drops the rows after its checkpoint and goes on from there."""

    def __init__(self, store: Store, key: str, resume_at: int, watch: Callable[[Row], None] | None = None) -> None:
        """`watch` is called with each new row: it draws the progress or feeds TensorBoard."""
        self._store, self._key, self._watch = store, key, watch
        self._rows = [row for row in read_metrics(store, key) if row["step"] <= resume_at]

    def add(self, row: Row) -> None:
        """Append a row; `flush` makes it durable."""
        self._rows.append({name: _finite(value) for name, value in row.items()})
        if self._watch is not None:
            self._watch(self._rows[-1])

    def flush(self) -> None:
        """Write all rows to the store."""
        self._store.put(self._key, "".join(json.dumps(row) + "\n" for row in self._rows).encode())


def read_metrics(store: Store, key: str) -> list[Row]:
    """The rows of a run's metrics, none if it has not written any."""
    try:
        return [json.loads(line) for line in store.get(key).decode().splitlines()]
    except NotFound:
        return []


def _finite(value: Any) -> Any:
    """JSON knows no NaN or infinity: they become null."""
    if isinstance(value, float):
        return round(value, 7) if math.isfinite(value) else None
    return value
