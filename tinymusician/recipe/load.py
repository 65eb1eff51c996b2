"""Reads recipes: packaged ones by name, YAML files by path; with `extends` and overrides."""

from __future__ import annotations

from copy import deepcopy
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import cast

import yaml
from pydantic import ValidationError

from tinymusician.errors import RecipeError
from tinymusician.json_types import JsonObject
from tinymusician.recipe.recipe import Recipe

_KIND_KEYS = {
    "objective": "name",
    "student": "kind",
    "signals": "source",
    "evaluate.reference": "kind",
    "evaluate.embedding": "kind",
}
"""The sections that have several kinds, and the key that names the kind."""


def recipe_names() -> list[str]:
    """The packaged recipes."""
    return sorted(p.name.removesuffix(".yaml") for p in _packaged().iterdir() if p.name.endswith(".yaml"))


def load_recipe(name: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Load a packaged recipe by name or a YAML file by path, and apply `section.key=value` overrides.

    A file may say `extends: RECIPE`: it then contains only what differs from that recipe, and its name.

    Raises:
        RecipeError: there is no such recipe, it is not YAML, or a key or value is not allowed.
    """
    return parse_recipe(apply_overrides(_read_extended(name), overrides), name)


def recipe_yaml(recipe: Recipe) -> str:
    """All values of a recipe as a YAML file that `load_recipe` reads."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def apply_overrides(content: JsonObject, overrides: tuple[str, ...]) -> JsonObject:
    """A recipe's content after `section.key=value` overrides.

    Another teacher loses the sampling settings of the recipe's teacher, unless they are overridden as well.
    """
    changed = deepcopy(content)
    if any(override.startswith("teacher.model=") for override in overrides):
        _drop_sampling(changed.setdefault("teacher", {}))
    for override in overrides:
        _override(changed, override)
    return changed


def parse_recipe(content: object, name: str) -> Recipe:
    """Validate the content of a recipe file; `name` is for messages.

    Raises:
        RecipeError: a key or value is not allowed.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"recipe {name}: {_explain(error)}") from None


def _packaged() -> Traversable:
    return resources.files("tinymusician") / "recipes"


def _read(name: str) -> JsonObject:
    is_path = "/" in name or name.endswith((".yaml", ".yml"))
    if not is_path and name not in recipe_names():
        raise RecipeError(
            f"recipe {name!r}: not packaged; allowed are {', '.join(recipe_names())}, or a YAML file's path"
        )
    try:
        text = Path(name).read_text("utf-8-sig") if is_path else (_packaged() / f"{name}.yaml").read_text("utf-8")
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {name}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {name}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise RecipeError(f"recipe {name}: holds {type(content).__name__}, a mapping of keys is needed")
    return cast(JsonObject, content)


def _read_extended(name: str, children: tuple[str, ...] = ()) -> JsonObject:
    """A recipe's content merged into that of the recipe that it extends; `children` are those that extend it."""
    content = _read(name)
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise RecipeError(f"recipe {name}: extends = {base!r}: the name or path of one recipe is needed")
    if base.startswith("."):
        base = str(Path(name).parent / base)
    if base in (*children, name):
        raise RecipeError(f"recipe {name}: extends itself, through {' and '.join((*children, name))}")
    content.setdefault("name", Path(name).stem)
    merged = deepcopy(_read_extended(base, (*children, name)))
    _merge(merged, content, "")
    return merged


def _merge(base: JsonObject, changes: JsonObject, section: str) -> None:
    """Apply changes to a recipe's content in place, key by key; a section of another kind is replaced."""
    kind = _KIND_KEYS.get(section)
    if kind in changes and changes[kind] != base.get(kind):
        base.clear()
    if section == "teacher" and changes.get("model", base.get("model")) != base.get("model"):
        _drop_sampling(base)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value, f"{section}.{key}" if section else key)
        else:
            base[key] = value


def _drop_sampling(teacher: JsonObject) -> None:
    """Remove the sampling settings of another model: each model brings its own."""
    for key in ("guidance_scale", "top_k", "temperature"):
        teacher.pop(key, None)


def _override(content: JsonObject, override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set {override!r}: the form is part.key=value, such as training.steps=200")
    section = content
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise RecipeError(f"--set {override!r}: {key!r} is a value, not a part")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override!r}: the value is not YAML") from error
    if keys[-1] == _KIND_KEYS.get(".".join(keys[:-1])) and section.get(keys[-1]) != value:
        section.clear()  # another kind has other keys: what the old one said does not apply
    section[keys[-1]] = value


def _without_kinds(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A field's location as in the recipe: pydantic adds the kind after a section that has several."""
    for depth in (1, 2):
        if ".".join(str(key) for key in location[:depth]) in _KIND_KEYS:
            return location[:depth] + location[depth + 1 :]
    return location


def _explain(error: ValidationError) -> str:
    """Each problem as `field (value): what is allowed`, on one line."""
    lines = []
    for problem in error.errors():
        field = ".".join(str(key) for key in _without_kinds(problem["loc"])) or "recipe"
        given = problem["input"]
        shown = f" = {given!r}" if isinstance(given, str | int | float | bool | None) else ""
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "no such key"
        lines.append(f"{field}{shown}: {message[0].lower()}{message[1:]}")
    return "; ".join(lines)
