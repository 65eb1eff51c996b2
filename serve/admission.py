"""How many requests there may be at once. Who finds no place is told at once when to come again, and waits nowhere."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

_MEMORY = 0.8
"""How much of the mean duration stays with every new one."""
_LONGEST_WAIT = 60


class OverloadedError(Exception):
    """No place is free; `wait` is in how many whole seconds one should be."""

    def __init__(self, limit: int, wait: int) -> None:
        super().__init__(f"all {limit} places are taken")
        self.wait = wait


class ConcurrencyLimiter:
    """A number of places."""

    def __init__(self, limit: int) -> None:
        self._limit, self._mean = limit, 1.0
        self.taken = 0

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Take a place for as long as the block lasts.

        Raises:
            Full: there is none.
        """
        if self.taken >= self._limit:
            raise OverloadedError(self._limit, min(_LONGEST_WAIT, max(1, math.ceil(self._mean))))
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    def took(self, seconds: float) -> None:
        """Hear how long somebody had a place, so that others can be told when one may be free."""
        self._mean = _MEMORY * self._mean + (1 - _MEMORY) * seconds
