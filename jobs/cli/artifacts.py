"""`tmctl artifacts`: what the store holds, whether it is whole, and how to take it out."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.output import emit, table, warn
from tinymusician.artifacts import manifest as manifests
from tinymusician.artifacts.address import open_store
from tinymusician.errors import Corrupt

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Look at the artifacts in the store.")
Reference = Annotated[str, typer.Argument(metavar="REF", help="NAME (the newest) or NAME@sha256:DIGEST.")]
Json = Annotated[bool, typer.Option("--json", help="Print the manifest(s) as JSON.")]


@app.command("list")
def list_all(json: Json = False) -> None:
    """List all artifacts, oldest first."""
    found = manifests.list_manifests(open_store(), warn)
    rows = [
        [m.reference[: len(m.name) + 20], m.kind, f"{m.size / 1e6:.1f} MB", f"{m.created:%Y-%m-%d %H:%M}", m.licence]
        for m in found
    ]
    text = table(["ARTIFACT", "KIND", "SIZE", "CREATED", "LICENCE"], rows) if rows else "no artifacts yet"
    emit([{**m.model_dump(mode="json"), "digest": m.digest} for m in found], json, text)


@app.command()
def show(reference: Reference, json: Json = False) -> None:
    """Show one artifact: files, figures, lineage, licence."""
    found = manifests.find(open_store(), reference)
    lines = [
        f"artifact {found.reference}",
        f"kind {found.kind}, made {found.created:%Y-%m-%d %H:%M} UTC",
        f"licence {found.licence}",
    ]
    lines += ["files"] + [f"  {file.path}  {file.size} bytes  sha256:{file.sha256[:12]}" for file in found.files]
    lines += ["figures"] + [f"  {name}: {value}" for name, value in found.metrics.items()]
    lines += ["lineage"] + [f"  {name}: {value}" for name, value in found.lineage.items()]
    emit({**found.model_dump(mode="json"), "digest": found.digest}, json, "\n".join(lines))


@app.command()
def verify(reference: Reference) -> None:
    """Read every file of an artifact and compare it with its digest."""
    store = open_store()
    found = manifests.find(store, reference)
    with tempfile.TemporaryDirectory() as scratch:
        problems = manifests.verify(store, found, Path(scratch))
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise Corrupt(f"artifact {found.reference}: {len(problems)} of {len(found.files)} files are damaged or missing")
    print(f"artifact {found.reference}: {len(found.files)} files, {found.size} bytes, all as their digests say")


def pull(
    reference: Reference, to: Annotated[Path, typer.Option("--to", help="The folder to write into; made if missing.")]
) -> None:
    """Write an artifact's files into a folder, each checked against its digest.

    Example: `tmctl pull band --to my-student`
    """
    store = open_store()
    found = manifests.find(store, reference)
    manifests.fetch(store, found, to, lambda path: print(path, file=sys.stderr))
    print(to)
