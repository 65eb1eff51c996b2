"""The lock files: every package has hashes and constraints.txt's version, and the page's packages have integrities."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "infra" / "locks"
BY_OTHER_MEANS = {"torch", "uv"}
"""torch's build differs by machine; uv writes the locks."""


def packages(lock: Path) -> dict[str, tuple[str, list[str]]]:
    """By name, the version and the hashes."""
    entries = re.split(r"^(?=[^\s#])", lock.read_text(), flags=re.MULTILINE)[1:]
    locked = {}
    for entry in entries:
        pin = re.match(r"(\S+)==([^\s;]+)", entry)
        assert pin is not None, entry
        locked[plain(pin[1])] = pin[2], re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry)
    return locked


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints() -> dict[str, str]:
    pins = (line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {plain(name): version for name, version in pins}


@pytest.mark.parametrize("name", ["development", "cluster", "endpoint", "store", "smollm"])
def test_every_package_has_hashes_and_the_pinned_version(name: str) -> None:
    locked, pinned = packages(LOCKS / f"{name}.txt"), constraints()
    assert locked
    assert all(hashes for _, hashes in locked.values())
    assert {package: version for package, (version, _) in locked.items()} == {each: pinned[each] for each in locked}


def test_every_pin_is_locked() -> None:
    locked = {package for lock in LOCKS.glob("*.txt") for package in packages(lock)}
    assert set(constraints()) - locked == BY_OTHER_MEANS


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        (
            "development",
            ["cluster", "quantize", "serve", "s3", "audio", "convert", "hsm", "openssf", "loudness", "mlflow"],
        ),
        ("development", ["band", "dev", "docs"]),
        ("cluster", ["cluster", "quantize", "serve", "s3", "mlflow", "band"]),
        ("endpoint", ["serve", "s3"]),
    ],
)
def test_what_the_project_requires_is_locked(name: str, extras: list[str]) -> None:
    """pip installs a lock with --no-deps: what it lacks is not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    names = {plain(re.split(r"[\[<>=]", requirement)[0]) for requirement in direct}
    assert names - set(packages(LOCKS / f"{name}.txt")) <= BY_OTHER_MEANS


@pytest.mark.parametrize("file", ["Makefile", "infra/docker/Dockerfile"])
def test_pip_checks_hashes_of_all_but_torch_and_this_project(file: str) -> None:
    installs = re.findall(r"pip install (.*?)(?=$|&&|\\$)", (ROOT / file).read_text(), re.MULTILINE)
    unchecked = [line for line in installs if "--require-hashes" not in line]
    assert len(installs) > len(unchecked)
    assert all(
        "-c constraints.txt torch" in line or line.split("--no-deps ")[-1].strip() in {".", "-e ."}
        for line in unchecked
    )


def test_packages_of_the_page_have_integrities() -> None:
    lock = json.loads((ROOT / "serve" / "page" / "package-lock.json").read_text())
    direct = json.loads((ROOT / "serve" / "page" / "package.json").read_text())["dependencies"]
    entries = {name.removeprefix("node_modules/"): entry for name, entry in lock["packages"].items() if name}
    assert {name: entries[name]["version"] for name in direct} == direct
    assert all(entry["integrity"].startswith("sha512-") for entry in entries.values())


@pytest.mark.parametrize(
    ("package", "excluded", "reason"),
    [
        ("onnxruntime", "1.23.2", "loads external data outside a graph's folder"),
        ("transformers", "4.58.0", "Optimum's exporter does not support it"),
        ("fastapi", "0.131.0", "reads a body of another Content-Type as JSON"),
    ],
)
def test_releases_that_must_not_be_installed(package: str, excluded: str, reason: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    bounds = [one.specifier for one in map(Requirement, stated) if plain(one.name) == package]
    assert bounds
    assert all(not bound.contains(excluded) for bound in bounds), reason
    assert all(bound.contains(constraints()[package]) for bound in bounds)
