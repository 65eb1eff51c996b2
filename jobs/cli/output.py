"""The output of the command line: JSON for scripts, tables, recipes and settings."""

from __future__ import annotations

import json
import re
import sys

from pydantic import BaseModel

from jobs.registry import JobKind
from tinymusician.json_types import JsonObject
from tinymusician.recipe import Recipe

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def emit(value: object, as_json: bool, text: str) -> None:
    """Print `value` as one JSON document, or `text`, flushed at once.

    JSON is ASCII where the output has another encoding than UTF-8: a character that it lacks must not be replaced.
    """
    text = printable(text)
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, indent=2, ensure_ascii=not is_utf8, default=str) if as_json else text, flush=True)


def print_progress(text: str) -> None:
    """Print a line on standard error, at once."""
    print(printable(text), file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Print a one-line warning on standard error."""
    print(f"warning: {printable(' '.join(message.split()))}", file=sys.stderr)


def printable(text: str) -> str:
    """A text whose control characters are written out: a terminal would obey those that come from a store.

    Line ends and tabs stay; a carriage return, which would let a line hide the one before, becomes a line end.
    """
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text.replace("\r\n", "\n").replace("\r", "\n"))


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A plain table with aligned columns."""
    widths = [max(len(line[i]) for line in [columns, *rows]) for i in range(len(columns))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [columns, *rows]
    ]
    return "\n".join(lines)


def print_recipe(
    recipe: Recipe, as_json: bool, workers: int = 1, kind: JobKind = "distill", on: str | None = None
) -> None:
    """Print every value of a recipe with its meaning, and the estimated cost of a run; its plan `on` other devices.

    Raises:
        RecipeError: it does not fit these devices.
    """
    from jobs.launch.planning import plan_distill

    plan = plan_distill(recipe, on) if on is not None else None
    from jobs.launch.estimate import distill_cost, pretrain_cost, quantize_cost, understand_cost

    estimate: JsonObject
    if kind == "evaluate":
        estimate = {}
    elif kind == "understand":
        estimate = understand_cost(recipe)
    elif kind == "pretrain":
        estimate = pretrain_cost(recipe)
    else:
        estimate = quantize_cost(recipe) if kind == "quantize" else distill_cost(recipe, workers)
    if as_json:
        facts = {"plan": plan.facts()} if plan is not None else {}
        emit({**recipe.model_dump(mode="json"), "cost": estimate, **facts}, as_json, "")
        return
    print(f"{recipe.name}: {recipe.description}\n")
    print_settings(recipe)
    if estimate:
        print("\ncost")
    for name, value in estimate.items():
        print(f"  {name.replace('_', ' ')}: {value}")
    if plan is not None:
        print("\nplan: without the start of workers, downloads, other components and the report")
        print("\n".join(f"  {line}" for line in plan.lines()))


def print_settings(config: BaseModel) -> None:
    """Print every value of a configuration with its meaning."""
    rows = _setting_rows(config, "")
    width = max(len(f"{name} = {value}") for name, value, _ in rows)
    for name, value, meaning in rows:
        print(f"  {f'{name} = {value}':<{min(width, 60)}}  {meaning}".rstrip())


def _setting_rows(section: BaseModel, prefix: str) -> list[tuple[str, object, str]]:
    """Each value of a configuration as (dotted name, value, meaning)."""
    rows: list[tuple[str, object, str]] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if hasattr(type(value), "model_fields"):
            rows += _setting_rows(value, f"{prefix}{name}.")
        elif prefix or name not in {"name", "description"}:
            rows.append(
                (f"{prefix}{name}", list(value) if isinstance(value, tuple) else value, field.description or "")
            )
    return rows
