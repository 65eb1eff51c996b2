"""Generates the reference pages while the site is built: the command line, recipe keys, and the Python API."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import mkdocs_gen_files
import typer.main
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.cli import get_docs_for_click
from typer.core import TyperCommand, TyperGroup

from jobs.cli.main import app
from serve.config import ServeConfig
from tinymusician.recipe import Recipe

ROOT = Path(__file__).parents[2]
PACKAGES = ("tinymusician", "jobs", "serve")


def write(path: str, text: str) -> None:
    """Add a page to the site."""
    with mkdocs_gen_files.open(path, "w") as page:
        page.write(text)


def type_text(annotation: Any) -> str:
    """A type as a reader of YAML would put it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(type_text(one) for one in arguments if one is not type(None))
    if origin is tuple:
        return f"list of {type_text(arguments[0])}"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "mapping"}
    return names.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The configuration classes that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for one in get_args(annotation) for model in models_in(one)]


def key_tables(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Tables of a section's keys, and of the sections within it; one for each kind of a section that has several."""
    rows, nested = [], []
    for name, field in model.model_fields.items():
        models = models_in(field.annotation)
        if models:
            nested += [(f"{prefix}{name}", one, len(models) > 1) for one in models]
            continue
        default = field.default
        shown = (
            "required"
            if default is PydanticUndefined
            else f"`{list(default) if isinstance(default, tuple) else default}`"
        )
        rows.append(f"| `{prefix}{name}` | {type_text(field.annotation)} | {shown} | {field.description or ''} |")
    if rows:
        yield "| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    for name, one, several in nested:
        kind = next(
            (
                f"`{get_args(field.annotation)[0]}`"
                for key, field in one.model_fields.items()
                if key in ("kind", "source", "name")
                and get_origin(field.annotation) is Literal
                and len(get_args(field.annotation)) == 1
            ),
            "",
        )
        title = f"`{name}`" + (f", {kind or one.__name__}" if several else "")
        yield f"### {title}\n\n{(one.__doc__ or '').strip()}\n"
        yield from key_tables(one, f"{name}.")


def recipe_page() -> str:
    """Every key of a recipe."""
    head = "# Recipe keys\n\n`tmctl recipes show NAME` prints these for a recipe, with its values. How to write one: "
    head += "[Recipes](../recipes.md).\n\n"
    return head + "\n".join(key_tables(Recipe, ""))


def serve_page() -> str:
    """Every setting of the endpoint."""
    head = "# Endpoint settings\n\n`tmctl serve REF --set KEY=VALUE` overrides one; see [Serving](../serving.md).\n\n"
    return head + "\n".join(key_tables(ServeConfig, ""))


def use_whole_first_lines(command: TyperCommand | TyperGroup) -> None:
    """Give each command its first paragraph as short help, which click would cut after 45 characters."""
    command.short_help = inspect.cleandoc(command.help or "").split("\n\n")[0].replace("\n", " ")
    for child in command.commands.values() if isinstance(command, TyperGroup) else ():
        use_whole_first_lines(child)


def command_page() -> str:
    """The command line, from its help."""
    command = typer.main.get_command(app)
    use_whole_first_lines(command)
    context = command.make_context("tmctl", [], resilient_parsing=True)
    return get_docs_for_click(obj=command, ctx=context, name="tmctl", title="Command line")


def api_pages() -> list[tuple[str, str]]:
    """One page for each package with modules of its own; returns titles and paths."""
    pages = []
    folders = sorted({path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")})
    for folder in folders:
        name = ".".join(folder.relative_to(ROOT).parts)
        modules = sorted(path.stem for path in folder.glob("*.py") if path.stem not in ("__init__", "__main__"))
        if not modules:
            continue
        body = "\n\n".join(f"::: {name}.{module}" for module in modules)
        path = f"reference/{name.replace('.', '/')}/index.md"
        write(path, f"# {name}\n\n{body}\n")
        pages.append((name, path.removeprefix("reference/")))
    return pages


write("reference/command-line.md", command_page())
write("reference/recipe-keys.md", recipe_page())
write("reference/endpoint-settings.md", serve_page())
write("changelog.md", (ROOT / "CHANGELOG.md").read_text("utf-8"))
write("contributing.md", (ROOT / "CONTRIBUTING.md").read_text("utf-8").replace("](docs/", "]("))
listed = "\n".join(f"    * [{name}]({path})" for name, path in api_pages())
write(
    "reference/SUMMARY.md",
    "* [Command line](command-line.md)\n* [Recipe keys](recipe-keys.md)\n* [Endpoint settings](endpoint-settings.md)\n"
    f"* Python API\n{listed}\n",
)
