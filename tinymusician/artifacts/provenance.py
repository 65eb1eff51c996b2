"""The versions, the commit and the machine that a run or a benchmark records."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

_PACKAGES = ("tinymusician", "torch", "transformers", "ray", "deepspeed", "numpy", "safetensors", "onnxruntime")


def package_versions() -> dict[str, str]:
    """The versions of the packages that a run's results depend on."""
    result = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for package in _PACKAGES:
        try:
            result[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            result[package] = "not installed"
    return result


def git_state() -> dict[str, str]:
    """The commit of the checkout that this code runs from, and whether it was changed."""

    def git(*words: str) -> str:
        command = ["git", *words]
        try:
            ended = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        except FileNotFoundError:  # an image has no git
            return ""
        return ended.stdout.strip() if ended.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    return {"commit": commit or "not a checkout", "changed": "yes" if commit and git("status", "--porcelain") else "no"}


def machine() -> str:
    """Processor, cores and memory of this machine."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0
    size = [f"{memory:.0f} GiB"] if memory else []
    return ", ".join([names[0] if names else platform.machine(), f"{os.cpu_count()} cores", *size])
