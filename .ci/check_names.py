"""Checks that identifiers use standard terms: no part of a name may be one of WORDS, and no two classes share a name.

    python .ci/check_names.py      prints every offending identifier; exit code 1 if there is any

Covers modules, functions, classes, arguments, assigned variables and attributes of Python; functions, variables and
properties of the page's JavaScript; keys of YAML files; command-line options; metric names; headings of documents; the
texts of dashboards, alerts and runbooks. Names are split at underscores, hyphens and capitals.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        told heard wish asked asks musician seat seated shelf company bench found own kept known wanted books anew ear
        room patience places brought voice stir presumed heirs
        """,
    )
)
"""Words of private language, and participles that say nothing as names."""
PACKAGES = ("tinymusician/", "jobs/", "serve/")
ALLOWED = re.compile(r"TinyMusician|tinymusician|NotFound|FileNotFoundError|MusicBench")
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_JAVASCRIPT = (
    re.compile(r"\b(?:const|let|var|function\*?|class)\s+\{?([\w$, ]+)\}?"),
    re.compile(r"(?:^|[{,(]\s*)([A-Za-z_$][\w$]*)\s*(?:=>|:)", re.M),
    re.compile(r"^\s*(?:async |static |get |set )*\*?([A-Za-z_$][\w$]*)\(.*\) \{$", re.M),
    re.compile(r"\(([\w$, ]*)\)\s*=>"),
    re.compile(r"\.([A-Za-z_$][\w$]*)\s*="),
)
_YAML_KEY = re.compile(r"^\s*-?\s*([A-Za-z][\w-]*):(?:\s|$)", re.M)
_OPTION = re.compile(r'"--([a-z][a-z-]*)')
_METRIC = re.compile(r'"(tinymusician_\w+)"')
_HEADING = re.compile(r"^#+ (.+)$", re.M)
_TEXT = re.compile(r"^(.+)$", re.M)
_DASHBOARD_TEXT = re.compile(r'"(?:title|description|legendFormat)": "([^"]*)"')


def offends(name: str) -> bool:
    """Whether a part of a name is forbidden."""
    return any(part.lower() in WORDS for part in _PARTS.findall(ALLOWED.sub("", name)))


def python_names(source: str) -> Iterator[tuple[int, str]]:
    """The identifiers that a Python file defines, with their lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.lineno, node.name
    for pattern in (_OPTION, _METRIC):
        yield from _matches(pattern, source)


def _matches(pattern: re.Pattern[str], source: str) -> Iterator[tuple[int, str]]:
    for match in pattern.finditer(source):
        for name in re.split(r"[,\s]+", match[1]):
            yield source.count("\n", 0, match.start(1)) + 1, name


def names(path: Path) -> Iterator[tuple[int, str]]:
    """The identifiers of a file that this check covers."""
    if path.suffix == ".py":
        yield 0, path.stem
        yield from python_names(path.read_text())
    elif path.suffix in {".js", ".mjs"}:
        yield 0, path.stem
        for pattern in _JAVASCRIPT:
            yield from _matches(pattern, path.read_text())
    elif path.suffix in {".yaml", ".yml"}:
        yield from _matches(_TEXT if path.name == "alerts.yml" else _YAML_KEY, path.read_text())
    elif path.suffix == ".md":
        yield from _matches(_TEXT if path.parent.name == "runbooks" else _HEADING, path.read_text())
    elif path.name == "dashboard.json":
        yield from _matches(_DASHBOARD_TEXT, path.read_text())


def duplicate_classes(paths: list[Path]) -> Iterator[str]:
    """Public classes whose name is defined in another of the files too."""
    modules: dict[str, Path] = {}
    for path in paths:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                if node.name in modules:
                    yield f"{path}:{node.lineno}: {node.name} is also in {modules[node.name]}"
                modules[node.name] = path


def main() -> int:
    """Check all tracked files."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    offending = {
        f"{path}:{line}: {name}"
        for path in listed.split("\0")
        if (ROOT / path).is_file()
        for line, name in names(ROOT / path)
        if offends(name)
    }
    product = [path for path in listed.split("\0") if path.startswith(PACKAGES) and path.endswith(".py")]
    offending |= set(duplicate_classes([path for path in map(ROOT.joinpath, product) if path.is_file()]))
    print("\n".join(sorted(offending)), end="\n" if offending else "")
    return 1 if offending else 0


if __name__ == "__main__":
    sys.exit(main())
