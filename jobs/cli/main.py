"""`tmctl`: the entry point, its options for every command, and how errors look."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from jobs.cli import api_keys as access
from jobs.cli import artifacts, generate, pull, recipes, runs, serve, submit
from jobs.cli import signing_keys as keys
from tinymusician.errors import TinyMusicianError

app = typer.Typer(
    name="tmctl",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Make big text-to-music models small: submit jobs to a Ray cluster, watch them, and keep what they make.\n\n"
    "Start with `tmctl submit distill band`; `tmctl runs` lists what ran, `tmctl artifacts list` what came out.\n\n"
    "`TMCTL_STORE` says where runs and artifacts are kept (`file:///folder` or `s3://bucket/prefix`), "
    "`TMCTL_CLUSTER` which Ray cluster runs the jobs; without it a local one is used.",
)
app.add_typer(submit.app, name="submit")
app.add_typer(recipes.app, name="recipes")
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(keys.app, name="keys")
app.add_typer(access.app, name="access")
runs.add_to(app)
app.command()(pull.pull)
app.command()(generate.generate)
app.command()(serve.serve)

EXTRAS = {
    "boto3": "s3",
    "fastapi": "serve",
    "ray": "cluster",
    "torch": "cluster",
    "transformers": "cluster",
    "safetensors": "cluster",
}
"""What playing does not need, and the extra that brings it."""


@app.callback()
def everywhere(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options for every command."""
    if debug:
        os.environ["TMCTL_DEBUG"] = "1"


def main() -> None:
    """Run `tmctl`; an error that a user can mend becomes one line on standard error, and exit code 1."""
    try:
        app()
    except TinyMusicianError as error:
        if os.environ.get("TMCTL_DEBUG"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if os.environ.get("TMCTL_DEBUG"):
            raise
        print(f"error: {error.filename or 'this machine'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS or os.environ.get("TMCTL_DEBUG"):
            raise
        needed = f"pip install 'tinymusician[{EXTRAS[package]}]'"
        print(f"error: {package} is not installed, and this needs it: `{needed}`", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
