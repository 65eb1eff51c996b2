"""`tmctl artifacts gc`: remove what no alias, run or newer artifact needs."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli.artifact_options import Json
from jobs.cli.output import emit, print_progress, warn
from jobs.cli.signing_keys import registry
from tinymusician.artifacts import garbage_collection as garbage
from tinymusician.artifacts.open import open_store


def collect(
    keep: Annotated[int, typer.Option(min=1, help="The number of newest artifacts of every name that stay.")] = 3,
    shard_days: Annotated[
        float | None,
        typer.Option(
            min=7,
            metavar="DAYS",
            help="Also remove shards (signals, samples, clips) that are older; they are computed again when needed.",
            show_default="all stay",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove the data; without this option it is only listed.")] = False,
    json: Json = False,
) -> None:
    """Find unreachable data, and remove it with --yes.

    Reachable are the artifacts of aliases, the newest artifacts, those that unfinished runs name, and their sources.
    Nothing of the last seven days is removed, and no shard while a run has not ended. Release documents are never
    removed: they are the history.
    """
    store = open_store()

    def find() -> garbage.GcPlan:
        return garbage.find_garbage(store, registry(), keep, shard_days)

    plan = find()
    removed_bytes = garbage.collect(store, find, print_progress) if yes else 0
    if shard_days is not None and plan.open_runs:
        warn(f"no shards are removed while runs have not ended: {', '.join(plan.open_runs)} (`tmctl stop` ends a run)")
    parts = ("artifacts", "attestations", "shards", "blobs")
    keys = {part: list(getattr(plan, part)) for part in parts}
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in keys.items())
    said = f"{counts}, {plan.size / 1e6:.1f} MB"
    text = (
        f"{said}: removed"
        if yes
        else "\n".join([*(k for names in keys.values() for k in names), f"{said}; --yes removes them"])
    )
    emit({**keys, "bytes": plan.size, "removed": removed_bytes}, json, text)
