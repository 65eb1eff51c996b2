"""The check of names finds private vocabulary in each kind of file."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.ci_scripts import load_ci_script

DASHES, PREFIX = "--", "tinymusician_"  # apart, so that the check passes on this file


@pytest.fixture(scope="module")
def check() -> ModuleType:
    return load_ci_script("check_names")


@pytest.mark.parametrize(
    ("path", "content", "offending"),
    [
        ("a.py", "def f(own_share):\n    class IsTold: ...\n    x.found = 1\n", {"own_share", "IsTold", "found"}),
        ("a.py", "class NotFoundError: ...\nowner = renown = 1\n", set()),
        (
            "a.py",
            f'option("{DASHES}at-patience"); counter("{PREFIX}heard_total")',
            {"at-patience", f"{PREFIX}heard_total"},
        ),
        ("seat.py", "", {"seat"}),
        ("a.mjs", "const heardCodes = (wish) => 1", {"heardCodes", "wish"}),
        ("a.yaml", "most_places: 1\nplace: found\n", {"most_places"}),
        ("a.md", "# What was found\nText that was found\n", {"found"}),
        ("runbooks/a.md", "# Title\nText that was found\n", {"found"}),
        ("alerts.yml", "summary: no places\n", {"places"}),
        ("dashboard.json", '{"title": "Places taken", "refId": "own"}', {"Places"}),
    ],
)
def test_offending_names(check: ModuleType, tmp_path: Path, path: str, content: str, offending: set[str]) -> None:
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    assert {name for _, name in check.names(file) if check.offends(name)} == offending


def test_two_classes_of_one_name(check: ModuleType, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.py", "b.py", "c.py")]
    for file, content in zip(files, ("class Plan: ...", "class _Plan: ...", "x = 1\nclass Plan: ..."), strict=True):
        file.write_text(content)
    assert list(check.duplicate_classes(files)) == [f"{files[2]}:2: Plan is also in {files[0]}"]
