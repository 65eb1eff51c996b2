"""The `Range` header of a request for one file (RFC 9110, 14.2): one range of bytes."""

from __future__ import annotations

import re
from typing import NamedTuple

_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{1,18})?|-(\d{1,18}))", re.IGNORECASE)


class ByteRange(NamedTuple):
    """Bytes from `start` to before `stop`, or to the end; or the last `suffix` bytes."""

    start: int = 0
    stop: int | None = None
    suffix: int | None = None

    def within(self, size: int) -> tuple[int, int] | None:
        """First byte, and the one after the last, of a file of this size; None if it has none of them."""
        if self.suffix is not None:
            return (max(0, size - self.suffix), size) if self.suffix and size else None
        stop = size if self.stop is None else min(self.stop, size)
        return (self.start, stop) if self.start < stop else None


def parse_range(header: str | None) -> ByteRange | None:
    """The range of a header; None for a missing one, and for one that is malformed or has several: it is ignored."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None:
        return None
    if match[3] is not None:
        return ByteRange(suffix=int(match[3]))
    first, last = int(match[1]), None if match[2] is None else int(match[2])
    if last is not None and last < first:
        return None
    return ByteRange(first, None if last is None else last + 1)


def content_range(start: int, stop: int, size: int) -> str:
    """The header that says which bytes of a file a response has."""
    return f"bytes {start}-{stop - 1}/{size}"
