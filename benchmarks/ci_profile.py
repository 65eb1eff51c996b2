"""The time of a test stage: CPU seconds and processes by kind, and the cost of starting each.

    python -m benchmarks.ci_profile make test

Runs the command and reads /proc four times a second. A process counts under the first kind whose word is in its
command line; what it used after the last reading is lost. `idle` is the unused share of the machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.report import report

KINDS = {
    "Ray Train: workers": ("ray::RayTrainWorker",),
    "Ray Train: controller and helpers": (
        "ray::TrainController", "ray::PlacementGroup", "ray::Synchronization", "ray::DatasetManager",
        "ray::Preemption", "ray::_Autoscaling",
    ),
    "Ray: job supervisors": ("ray::JobSupervisor",),
    "Ray Serve": ("ray::Serve", "ray::ProxyActor"),
    "actors of jobs": ("ray::PoolActor", "ray::TeacherActor"),
    "Ray: servers": (
        "gcs_server", "raylet/raylet", "dashboard", "Agent", "monitor", "bin/ray", "ray.util.client",
    ),
    "Ray: workers that start or wait": ("ray::", "default_worker.py", "setup_worker.py"),
    "drivers of jobs": ("jobs.launch.supervisor --child",),
    "supervisors of jobs": ("jobs.launch.supervisor",),
    "tmctl": ("bin/tmctl",),
    "fork server, and its forks without a title": ("fork_server/server.py",),
    "S3 server": ("swift-",),
    "Chromium": ("chromium", "playwright"),
    "containers": ("dockerd", "containerd", "docker", "debootstrap"),
    "pip": ("/pip", "-m pip", "-m venv"),
    "pytest": ("pytest", "exec(eval(sys.stdin"),
}  # fmt: skip
STARTS = {
    "python": "pass",
    "import numpy": "import numpy",
    "import ray": "import ray",
    "import torch": "import torch",
    "import torch, transformers' musicgen": "from transformers import MusicgenForConditionalGeneration",
    "import torch, deepspeed": "import torch, deepspeed",
    "import ray.train.torch": "import ray.train.torch",
    "import jobs.cli.main": "import jobs.cli.main",
}
TICKS = os.sysconf("SC_CLK_TCK")


def kind_of(line: str) -> str:
    """The first kind one of whose words is in a command line."""
    return next((kind for kind, words in KINDS.items() if any(word in line for word in words)), "other")


def sample(seen: dict[tuple[int, int], tuple[str, float]]) -> None:
    """Write down every process's kind and CPU seconds so far; its pid and its start make it one."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if line:
            seen[int(entry.name), int(fields[19])] = kind_of(line), (int(fields[11]) + int(fields[12])) / TICKS


def start_seconds(code: str) -> float:
    """CPU seconds of a new Python that runs a line, the least of three."""
    result = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = os.times()
        result.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(result)


def main() -> int:
    """Run the command, print the table and the report."""
    figures = {f"start: {name}": round(start_seconds(code), 2) for name, code in STARTS.items()}
    before: dict[tuple[int, int], tuple[str, float]] = {}
    sample(before)
    seen, began = dict(before), time.monotonic()
    process = subprocess.Popen(sys.argv[1:])
    while process.poll() is None:
        sample(seen)
        time.sleep(0.25)
    wall = time.monotonic() - began
    spent: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for key, (kind, seconds) in seen.items():
        spent[kind] += seconds - before.get(key, (kind, 0.0))[1]
        count[kind] += key not in before
    total = sum(spent.values())
    print(f"\n{' '.join(sys.argv[1:])}: {wall:.0f} s, {total:.0f} CPU seconds")
    for kind, seconds in sorted(spent.items(), key=lambda one: -one[1]):
        print(f"  {kind:44} {seconds:8.0f} s {count[kind]:6} processes")
        figures[f"{kind}: cpu_seconds"], figures[f"{kind}: processes"] = round(seconds, 1), count[kind]
    figures |= {"wall_seconds": round(wall, 1), "cpu_seconds": round(total, 1)}
    figures["idle"] = round(1 - total / wall / (os.cpu_count() or 1), 3)
    report("ci_profile", figures, {"command": " ".join(sys.argv[1:])})
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
