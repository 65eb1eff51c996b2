"""The CPUs that this process may use: by its affinity, and by the quota of its container."""

from __future__ import annotations

import math
import os
from pathlib import Path

MAX_THREADS = 1024
"""More than any machine has for one engine."""
_ROOT = Path("/")


def available_cpus(root: Path = _ROOT) -> int:
    """The number of CPUs by affinity and cgroup quota, at least 1; a quota of half a CPU is one CPU."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(count, _quota(root))))


def engine_threads(threads: int, root: Path = _ROOT) -> int:
    """The number of threads for ONNX Runtime: `threads`, or if that is 0 what the process may use.

    0 stays 0 where the process may use the whole machine: ONNX Runtime then takes one thread per core. It knows neither
    affinity nor quotas, and threads beyond a quota wait for each other.
    """
    available = available_cpus(root)
    return threads if threads or available >= (os.cpu_count() or 1) else available


def _quota(root: Path) -> float:
    """The smallest CPU quota of the process's control groups, in CPUs; infinite without one."""
    quotas = [math.inf]
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            base = root / "sys/fs/cgroup/cpu"
        else:
            continue
        folder = base / path.lstrip("/")
        quotas += [_quota_of(one) for one in (folder, *folder.parents) if one.is_relative_to(base)]
    return min(quotas)


def _quota_of(folder: Path) -> float:
    """The quota of one control group: version 2 has it in `cpu.max`, version 1 in two files."""
    words = _read(folder / "cpu.max").split()
    words = words or [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    if len(words) != 2 or not all(word.isdigit() for word in words) or int(words[1]) == 0:
        return math.inf
    return int(words[0]) / int(words[1])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
