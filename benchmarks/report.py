"""The result of a benchmark: one JSON object with machine, versions and metrics, printed and stored."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def report(name: str, figures: dict[str, float], settings: Mapping[str, object]) -> None:
    """Print the result as the last line, and keep it under benchmarks/results."""
    from tinymusician.artifacts.provenance import git_state, machine, package_versions

    result = {
        "name": name,
        "machine": machine(),
        "versions": package_versions(),
        "git": git_state(),
        "settings": settings,
        "figures": {key: round(float(value), 4) for key, value in figures.items()},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
