"""A limit on concurrent requests. A request over the limit is refused at once, with a time after which to retry."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

_SMOOTHING = 0.8
"""Weight of the previous mean in the exponential moving average of request durations."""
_MAX_RETRY_AFTER = 60


class OverloadedError(Exception):
    """The limit is reached; `retry_after` is the time in whole seconds after which to retry."""

    def __init__(self, limit: int, retry_after: int) -> None:
        super().__init__(f"all {limit} slots are in use")
        self.retry_after = retry_after


class ConcurrencyLimiter:
    """Limits how many requests run at once; `taken` is how many do now."""

    def __init__(self, limit: int) -> None:
        self._limit, self._mean = limit, 1.0
        self.taken = 0

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Occupy a slot until the block ends.

        Raises:
            OverloadedError: the limit is reached.
        """
        if self.taken >= self._limit:
            raise OverloadedError(self._limit, min(_MAX_RETRY_AFTER, max(1, math.ceil(self._mean))))
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    def record_duration(self, seconds: float) -> None:
        """Add a request's duration to the mean, from which retry times are estimated."""
        self._mean = _SMOOTHING * self._mean + (1 - _SMOOTHING) * seconds
