"""Runs the stages of stages.toml: those that always run, and those whose files differ from when they last passed.

    python .ci/stages.py          what CI runs; CI_FULL=1 skips nothing
    python .ci/stages.py --all    every stage there is
    python .ci/stages.py NAME...  these stages

A stage that passes and skips no test writes the digest of its files into passed.json, which is committed. The first one
that fails ends the run.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

CI = Path(__file__).parent
PASSED = ".ci/passed.json"
SLOWEST = 15


@dataclass(frozen=True)
class Stage:
    """A command, when it runs, and the pathspecs of the files that it covers."""

    name: str
    command: str
    when: str
    files: tuple[str, ...]

    def covered(self, root: Path) -> list[str]:
        """Paths of the covered files: those that git tracks, and new ones that it does not ignore."""
        specs = [f":(glob){pattern}" for pattern in self.files]
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *specs]
        listed = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True).stdout.split("\0")
        return sorted({path for path in listed if path and path != PASSED and (root / path).is_file()})

    def digest(self, root: Path) -> str:
        """SHA-256 over the paths and contents of the covered files, and which of them can be executed."""
        whole = hashlib.sha256()
        for path in self.covered(root):
            mode = "x" if os.access(root / path, os.X_OK) else "-"
            whole.update(f"{path}\0{mode}{hashlib.sha256((root / path).read_bytes()).hexdigest()}\n".encode())
        return whole.hexdigest()


def read_stages(file: Path = CI / "stages.toml") -> list[Stage]:
    """The stages in their order."""
    content = tomllib.loads(file.read_text())
    shared = content.pop("shared")
    return [Stage(name, value["command"], value["when"], (*value["files"], *shared)) for name, value in content.items()]


def read_passed(root: Path) -> dict[str, dict[str, str | int]]:
    """What each stage last passed on."""
    file = root / PASSED
    return json.loads(file.read_text()) if file.exists() else {}


def selected(
    stage: Stage, root: Path, everything: bool = False, full: bool = False, names: tuple[str, ...] = ()
) -> tuple[bool, str]:
    """Whether a stage runs, and why."""
    if names:
        return stage.name in names, "asked for by name" if stage.name in names else "not asked for"
    if stage.when == "always" or everything or (full and stage.when == "changed"):
        return True, "runs at every change" if stage.when == "always" else "everything was asked for"
    if stage.when == "all":
        return False, "runs in `make test-all` only"
    last = read_passed(root).get(stage.name)
    if last is None:
        return True, "has not passed yet"
    if last["sha256"] != stage.digest(root):
        return True, f"its files have changed since it passed on {last['date']}"
    return False, f"passed on {last['date']} in {last['seconds']} s on the same files ({last['sha256'][:12]})"


def run(stage: Stage, root: Path) -> bool:
    """Run a stage; if it passes, and skips no test, write down on what."""
    digest, began = stage.digest(root), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.jsonl"
        environment = {**os.environ, "TEST_REPORT": str(report)}  # tests/conftest.py writes it
        passed = subprocess.run(stage.command.split(), cwd=root, env=environment, check=False).returncode == 0
        tests = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    seconds, skipped = round(time.monotonic() - began), sum(test["outcome"] == "skipped" for test in tests)
    for test in sorted(tests, key=lambda test: -float(test["seconds"]))[:SLOWEST]:
        print(f"{test['seconds']:8.1f} s  {test['name']}")
    outcome = "passed" if passed else "FAILED"
    print(f"=== {stage.name}: {outcome} in {seconds} s, {len(tests)} tests, {skipped} skipped", flush=True)
    if passed and not skipped:
        entry = {"sha256": digest, "date": time.strftime("%Y-%m-%d"), "seconds": seconds}
        content = {**read_passed(root), stage.name: entry}
        (root / PASSED).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    return passed


def main() -> int:
    """Run what is selected, say what is not and why."""
    root, everything, names = CI.parent, "--all" in sys.argv[1:], tuple(set(sys.argv[1:]) - {"--all"})
    if unknown := set(names) - {stage.name for stage in read_stages()}:
        print(f"no stage {', '.join(sorted(unknown))}; stages: {', '.join(stage.name for stage in read_stages())}")
        return 2
    full = os.environ.get("CI_FULL", "") not in {"", "0"}
    began = time.monotonic()
    for stage in read_stages():
        runs, why = selected(stage, root, everything, full, names)
        print(f"=== {stage.name}: {why}{'' if runs else '; skipped'}", flush=True)
        if runs and not run(stage, root):
            return 1
    print(f"=== all stages: {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
