"""Structured logs: one JSON object per line, with the request id."""

from __future__ import annotations

import contextvars
import json
import sys
from datetime import UTC, datetime

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""The id of the request that this task handles."""


def log_event(event: str, **facts: object) -> None:
    """Write one line to standard error, which Ray stores per process; facts that are None are omitted."""
    record: dict[str, object] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
    if request_id.get():
        record["request_id"] = request_id.get()
    record |= {name: value for name, value in facts.items() if value is not None}
    sys.stderr.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
    sys.stderr.flush()
