"""Huge pages for the weights: every step reads all of them, and with 4 KiB pages takes about a sixth longer."""

from __future__ import annotations

import ctypes
from pathlib import Path

_COLLAPSE = 25
"""MADV_COLLAPSE (Linux 6.1): collapse the pages of a range into huge pages now."""
_MIN_BYTES = 4 * 2**20


def use_large_pages() -> None:
    """Ask Linux to back this process's large private memory ranges with huge pages.

    This is advice: it has no effect on other systems, older kernels and machines that do not allow it.
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
        if anonymous and fields[1].startswith("rw") and end - start >= _MIN_BYTES:
            madvise(start, end - start, _COLLAPSE)
