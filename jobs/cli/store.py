"""`tmctl store`: what the store guarantees."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli.output import emit, table
from tinymusician.artifacts.open import open_store
from tinymusician.errors import StoreError

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Check the store of `TMCTL_STORE`.")


@app.callback()
def store() -> None:
    """A callback, so that `check` is a command of its own."""


@app.command()
def check(
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How often to repeat what depends on time.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write, list and delete values below `checks/`, and say whether the store guarantees what releases rely on.

    It needs credentials that may write, a minute at most, and about 20 MB of traffic.

    Example: `TMCTL_STORE=s3://music/band tmctl store check --rounds 100`
    """
    from tinymusician.artifacts.store_check import check_store

    opened = open_store()
    results = list(check_store(opened, rounds))
    rows = [["no" if one.problem else "yes", one.guarantee, one.problem] for one in results]
    failed = [one for one in results if one.problem]
    facts = [{"guarantee": one.guarantee, "problem": one.problem or None} for one in results]
    emit(facts, json, table(["", "GUARANTEE", "WHAT CONTRADICTS IT"], rows))
    if failed:
        raise StoreError(f"store {opened.url}: lacks {len(failed)} of {len(results)} guarantees: {failed[0].problem}")
