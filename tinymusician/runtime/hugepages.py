"""Large pages of memory for the weights: a step reads all of them, and pages of 4 KiB cost it a seventh of its time."""

from __future__ import annotations

import ctypes
from pathlib import Path

_COLLAPSE = 25
"""MADV_COLLAPSE of Linux 6.1: put the pages of a range together into large ones, now."""
_LEAST = 4 * 2**20


def use_large_pages() -> None:
    """Ask Linux to hold this process's large private ranges of memory in large pages.

    A wish and no more: other systems, older kernels and machines that do not allow it go on as they were.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in maps.read_text().splitlines():
        fields = line.split()
        start, end = (int(edge, 16) for edge in fields[0].split("-"))
        anonymous = len(fields) == 5 or fields[5] == "[heap]"
        if anonymous and fields[1].startswith("rw") and end - start >= _LEAST:
            madvise(start, end - start, _COLLAPSE)
