"""When each API key was last used, in a JSON file beside the file of keys, which stays read-only for the endpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, TypeAdapter, ValidationError

from serve.log import log_event
from tinymusician.artifacts.atomic import atomic_write

_SAVE_SECONDS = 60.0
_DATES = TypeAdapter(dict[str, AwareDatetime])


def usage_file(keys: Path) -> Path:
    """The default file of dates for a file of keys."""
    return keys.with_name(f"{keys.name}.usage")


def read_usage(path: Path) -> dict[str, datetime]:
    """The date of the last use of each key, by its id; nothing if there is no such file, or it is damaged."""
    try:
        return _DATES.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return {}


class KeyUsage:
    """Notes uses in memory, and saves them once a minute."""

    def __init__(
        self,
        path: Path,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._now, self._clock = path, now, clock
        self._dates, self._saved = read_usage(path), clock()
        self._has_changed = self._is_reported = False

    def record(self, key: str) -> None:
        """Note that a key, given by its id, is used now."""
        self._dates[key] = self._now().replace(microsecond=0)
        self._has_changed = True

    def save(self) -> None:
        """Write the file if there is anything new, and the last time was a minute ago; a failure is logged once."""
        if not self._has_changed or self._clock() - self._saved < _SAVE_SECONDS:
            return
        self._saved, self._has_changed = self._clock(), False
        try:
            with atomic_write(self._path, 0o600) as draft:
                draft.write_bytes(_DATES.dump_json(dict(self._dates), indent=2))
        except OSError as error:
            if not self._is_reported:
                log_event("key_usage_not_saved", file=str(self._path), error=str(error.strerror))
                self._is_reported = True
