"""Functions have at most 40 lines, unless a comment `# Long: REASON` stands above them.

python .ci/check_length.py
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_LINES = 40
ROOT = Path(__file__).parents[1]
FOLDERS = ("tinymusician", "jobs", "serve", "benchmarks", ".ci", "docs")


def long_functions(source: str) -> Iterator[tuple[int, str, int]]:
    """Line, name and length of every function that is too long without a reason."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            if length > MAX_LINES and not lines[first - 2].strip().startswith("# Long: "):
                yield node.lineno, node.name, length


def main() -> int:
    """Print the functions that are too long."""
    problems = [
        f"{path.relative_to(ROOT)}:{line}: {name} has {length} lines, at most {MAX_LINES}; or a `# Long: REASON`"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name, length in long_functions(path.read_text())
    ]
    print("\n".join(problems), file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
