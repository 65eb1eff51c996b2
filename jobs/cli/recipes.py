"""`tmctl recipes`: the packaged recipes, with every value and their cost."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli.output import emit, print_recipe, table
from tinymusician.recipe import load_recipe, recipe_names, recipe_yaml

app = typer.Typer(
    rich_markup_mode="markdown",
    invoke_without_command=True,
    help="List the packaged recipes, or show all values of one.",
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def list_recipes(context: typer.Context, json: Json = False) -> None:
    """List the packaged recipes."""
    if context.invoked_subcommand is None:
        recipes = [load_recipe(name) for name in recipe_names()]
        rows = [[recipe.name, recipe.description] for recipe in recipes]
        emit([recipe.model_dump(mode="json") for recipe in recipes], json, table(["RECIPE", "WHAT IT MAKES"], rows))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A packaged recipe's name or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="The number of workers for the estimate.")] = 1,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="Print a complete recipe file, which `tmctl submit` accepts.")
    ] = False,
    json: Json = False,
) -> None:
    """Print every value of a recipe with its meaning, and the estimated cost of a run.

    Example: `tmctl recipes show band --set training.steps=300 --yaml > longer.yaml`
    """
    from jobs.launch.prepare import with_sampling_defaults

    recipe = with_sampling_defaults(load_recipe(name, tuple(overrides or ())))
    if as_yaml:
        print(recipe_yaml(recipe), end="")
    else:
        print_recipe(recipe, json, workers)
