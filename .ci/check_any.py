"""A ratchet on `Any`: the number of lines of Python that use it may only fall. Lower the limits when it does.

python .ci/check_any.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("tinymusician", "jobs", "serve", "benchmarks", ".ci")
MAX_ANY = 145
"""Lines that contain `Any`, imports included, outside of tests."""
MAX_DICTIONARIES = 0
"""Lines that contain `dict[str, Any]` in jobs/."""


def lines_with(pattern: str, folders: tuple[str, ...]) -> list[str]:
    """`file:line` of every line that matches a pattern."""
    return [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path != Path(__file__)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]


def main() -> int:
    """Print the limits that are exceeded."""
    checks = (
        ("Any", lines_with(r"\bAny\b", FOLDERS), MAX_ANY),
        ("dict[str, Any] in jobs/", lines_with(r"dict\[str, Any\]", ("jobs",)), MAX_DICTIONARIES),
    )
    exceeded = [check for check in checks if len(check[1]) > check[2]]
    for name, lines, limit in exceeded:
        print(f"{name}: {len(lines)} lines; at most {limit} are allowed. The last ones:", *lines[-5:], sep="\n  ")
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
