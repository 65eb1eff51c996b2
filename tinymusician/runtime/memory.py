"""The peak memory of this process."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path


def peak_memory() -> int:
    """The peak resident memory of this process in bytes; 0 where the system does not say, as on Windows.

    On Linux this is VmHWM, which starts from zero in a new program; `getrusage` inherits the parent's peak.
    """
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ModuleNotFoundError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def reset_peak_memory() -> int:
    """Reset `peak_memory`, where the system allows it; returns the resident memory now, in bytes.

    This excludes the memory that importing libraries took.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or 0


def _status(name: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
