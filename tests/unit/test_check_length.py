"""The check of function length finds long functions that state no reason."""

from __future__ import annotations

import pytest

from tests.ci_scripts import load_ci_script

LONG = "def f():\n" + "    pass\n" * 40
INDENTED = "".join(f"    {line}\n" for line in LONG.splitlines())


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (LONG, ["f"]),
        ("# Long: a list of values.\n" + LONG, []),
        ("# Long: a list of values.\n@decorated\n" + LONG, []),
        ("def f():\n" + "    pass\n" * 39, []),
        ("class A:\n" + INDENTED, ["f"]),
    ],
)
def test_long_functions_need_a_reason(source: str, names: list[str]) -> None:
    assert [name for _, name, _ in load_ci_script("check_length").long_functions(source)] == names
