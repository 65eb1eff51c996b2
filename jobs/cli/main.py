"""`tmctl`: the entry point, the options of every command, and the format of errors."""

from __future__ import annotations

import io
import os
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import (
    api_keys,
    artifacts,
    ask,
    benchmark,
    generate,
    local_ray,
    models,
    pull,
    recipes,
    runs,
    serve,
    signing_keys,
    store,
    submit,
)
from jobs.cli.output import printable
from jobs.launch.ray_environment import bypass_proxies
from tinymusician.errors import TinyMusicianError

app = typer.Typer(
    name="tmctl",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Distil, compress, evaluate and serve text-to-music models on a Ray cluster.\n\n"
    "Start with `tmctl submit distill band`; `tmctl runs` lists runs, `tmctl artifacts list` lists their results.\n\n"
    "`TMCTL_STORE` is the store of runs and artifacts (`file:///folder` or `s3://bucket/prefix`). "
    "`TMCTL_CLUSTER` is the Ray cluster that runs the jobs; without it, tmctl starts a local one.",
)
JOBS, RUNS, ARTIFACTS, PLAYING = "Jobs", "Runs", "Artifacts and releases", "Playing and serving"
app.add_typer(submit.app, name="submit", rich_help_panel=JOBS)
app.add_typer(recipes.app, name="recipes", rich_help_panel=JOBS)
app.add_typer(models.app, name="models", rich_help_panel=JOBS)
app.add_typer(local_ray.app, name="local-ray", rich_help_panel=JOBS)
app.add_typer(runs.app, name="runs", rich_help_panel=RUNS)
for run_command in (runs.status, runs.logs, runs.stop):
    app.command(rich_help_panel=RUNS)(run_command)
app.add_typer(artifacts.app, name="artifacts", rich_help_panel=ARTIFACTS)
app.add_typer(signing_keys.app, name="signing-keys", rich_help_panel=ARTIFACTS)
app.add_typer(store.app, name="store", rich_help_panel=ARTIFACTS)
for play_command in (pull.pull, generate.generate, ask.ask, benchmark.benchmark, serve.serve):
    app.command(rich_help_panel=PLAYING)(play_command)
app.add_typer(api_keys.app, name="api-keys", rich_help_panel=PLAYING)


_PROJECT_PACKAGES = ("tinymusician", "jobs", "serve")


def extra_of(package: str) -> str | None:
    """The extra of this project that installs a package; None if there is none."""
    for requirement in metadata.requires("tinymusician") or ():
        name, _, marker = requirement.partition(";")
        distribution = re.split(r"[^\w-]", name.strip().lower().replace("-", "_"))[0]
        extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
        if extra and (distribution == package.lower() or distribution.startswith(f"{package.lower()}_")):
            return extra[1]
    return None


def _print_version(requested: bool) -> None:
    if requested:
        print(f"tmctl {metadata.version('tinymusician')}")
        raise typer.Exit


@app.callback()
def global_options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; also accepted after the command.")
    ] = False,
) -> None:
    """Options of every command; `main` handles `--debug`."""


def install_command(extra: str) -> str:
    """The command that installs an extra: from the checkout that this code is in, or from one that it names."""
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").is_file():
        return f"pip install -e '{checkout}[{extra}]'"
    return f"pip install '.[{extra}]'` in a checkout of TinyMusician, or `pip install 'tinymusician[{extra}] @ WHEEL'"


def main() -> None:
    """Run `tmctl`; a user's error becomes one line on standard error, and exit code 1.

    Terminals and files with an encoding that lacks a character get a replacement for it.
    """
    bypass_proxies()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        os.environ["TMCTL_DEBUG"] = "1"
    try:
        app()
    except TinyMusicianError as error:
        if os.environ.get("TMCTL_DEBUG"):
            raise
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if os.environ.get("TMCTL_DEBUG"):
            raise
        print(f"error: {error.filename or 'this machine'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = "serve" if "serve" in sys.argv[1:2] and package not in _PROJECT_PACKAGES else extra_of(package)
        if extra is None or os.environ.get("TMCTL_DEBUG"):
            raise
        print(f"error: {package} is not installed; run `{install_command(extra)}`", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
