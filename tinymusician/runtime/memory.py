"""How much memory this process took."""

from __future__ import annotations

import contextlib
from pathlib import Path


def peak_memory() -> int:
    """The most memory that this process ever held, in bytes.

    Linux counts it anew for a program that is started, where `getrusage` goes on from its parent's.
    """
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak_memory() -> int:
    """Let `peak_memory` count from now on, where the system can; returns the bytes that are held already.

    What a process took to import its libraries is then not taken for what it does with them.
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
