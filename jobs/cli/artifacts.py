"""`tmctl artifacts`: list, inspect, verify and compare the artifacts of a store."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import garbage_collection, import_input, releases
from jobs.cli.artifact_options import Json, Reference, short_reference
from jobs.cli.output import emit, print_progress, table, warn
from jobs.cli.signing_keys import registry
from tinymusician.artifacts import manifest as manifests
from tinymusician.artifacts.manifest import FileEntry, Manifest
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.reference import is_alias, split_reference
from tinymusician.artifacts.release import ReleasedFile
from tinymusician.artifacts.store import Store
from tinymusician.errors import DigestMismatchError
from tinymusician.json_types import JsonObject

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Inspect and release the artifacts of the store, and remove old ones.",
)
INSPECT, RELEASE = "Inspecting", "Releasing"


@app.command("list", rich_help_panel=INSPECT)
def list_artifacts(json: Json = False) -> None:
    """List all artifacts, oldest first."""
    all_manifests = manifests.list_manifests(open_store(), warn)
    rows = [
        [
            short_reference(m.reference),
            m.kind,
            (m.bundle_digest or "")[:12],
            f"{m.size / 1e6:.1f} MB",
            f"{m.created:%Y-%m-%d %H:%M}",
            m.licence,
        ]
        for m in all_manifests
    ]
    text = table(["ARTIFACT", "KIND", "BUNDLE", "SIZE", "CREATED", "LICENCE"], rows) if rows else "no artifacts yet"
    emit([_facts(manifest) for manifest in all_manifests], json, text)


@app.command(rich_help_panel=INSPECT)
def show(reference: Reference, json: Json = False) -> None:
    """Show an artifact's files, metrics, lineage and licence."""
    manifest = _find(open_store(), reference)
    lines = [
        f"artifact {manifest.reference}",
        f"kind {manifest.kind}, created {manifest.created:%Y-%m-%d %H:%M} UTC",
        f"licence {manifest.licence}",
    ]
    lines += [f"bundle {manifest.bundle_digest} (X-Bundle)"] if manifest.bundle_digest else []
    lines += ["files"] + [f"  {file.path}  {file.size} bytes  sha256:{file.sha256[:12]}" for file in manifest.files]
    lines += ["metrics"] + [f"  {name}: {value}" for name, value in manifest.metrics.items()]
    lines += ["lineage"] + [f"  {name}: {value}" for name, value in manifest.lineage.items()]
    emit(_facts(manifest), json, "\n".join(lines))


def _facts(manifest: Manifest) -> JsonObject:
    return {**manifest.model_dump(mode="json"), "digest": manifest.digest, "bundle_digest": manifest.bundle_digest}


@app.command(rich_help_panel=INSPECT)
def verify(reference: Reference) -> None:
    """Read every file of an artifact and compare it with its digest."""
    store = open_store()
    manifest = _find(store, reference)
    with tempfile.TemporaryDirectory() as scratch:
        problems = manifests.verify(store, manifest, Path(scratch))
    for problem in problems:
        print_progress(problem)
    if problems:
        raise DigestMismatchError(
            f"artifact {manifest.reference}: {len(problems)} of {len(manifest.files)} files are damaged or missing"
        )
    print(
        f"artifact {manifest.reference}: {len(manifest.files)} files, {manifest.size} bytes, all with the right digests"
    )


@app.command(rich_help_panel=INSPECT)
def diff(first: Reference, second: Reference, json: Json = False) -> None:
    """Compare two artifacts or aliases: which files differ, and what a device that has the first would download.

    Example: `tmctl artifacts diff band-bundle@stable band-bundle@candidate`
    """
    old, new = ({file.path: file for file in _files_of_reference(name)} for name in (first, second))
    old_digests = {file.sha256 for file in old.values()}
    rows, download = [], {}
    for path in sorted(old.keys() | new.keys()):
        before, after = old.get(path), new.get(path)
        if before is not None and after is not None and before.sha256 == after.sha256:
            state = "same"
        else:
            state = "new" if before is None else "gone" if after is None else "changed"
        if after is not None and after.sha256 not in old_digests:
            download[after.sha256] = after.size
        rows.append([path, state, f"{before.size if before else 0}", f"{after.size if after else 0}"])
    facts = {"files": {row[0]: row[1] for row in rows}, "download_bytes": sum(download.values())}
    shown = table(["FILE", "STATE", "BYTES BEFORE", "BYTES AFTER"], rows)
    text = f"{shown}\nto download: {sum(download.values()) / 1e6:.2f} MB"
    emit(facts, json, text)


@app.command(rich_help_panel=INSPECT)
def lineage(
    reference: Reference,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also plot the lineage: .svg, .png or .pdf.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Show an artifact's lineage: its sources back to the first teacher, and what was derived from it.

    Data, recipes, code and runs are listed as well.

    Example: `tmctl artifacts lineage band-bundle --picture lineage.svg`
    """
    from dataclasses import asdict

    from tinymusician.artifacts.lineage import backward, forward, lineage_edges, provenance_facts

    store = open_store()
    name = _find(store, reference).reference
    by_reference = {one.reference: one for one in manifests.list_manifests(store, warn)}
    every = lineage_edges(list(by_reference.values()))
    back, on = backward(name, every), forward(name, every)
    if picture is not None:
        from tinymusician.artifacts.lineage_plot import draw

        draw(by_reference[name], [*back, *on], by_reference, picture)
    rows = [["source", short_reference(one.source), short_reference(one.derived), one.run] for one in back]
    rows += [["derived", short_reference(one.source), short_reference(one.derived), one.run] for one in on]
    about = {
        one: provenance_facts(by_reference[one])
        for one in dict.fromkeys([name, *(s.source for s in back)])
        if one in by_reference
    }
    steps = {"sources": [asdict(one) for one in back], "derived": [asdict(one) for one in on]}
    text = [table(["", "FROM", "TO", "RUN"], rows)] if rows else [f"{short_reference(name)}: no lineage in this store"]
    for one, facts in about.items():
        text += ["", short_reference(one), *(f"  {fact}: {value}" for fact, value in facts.items())]
    emit({"artifact": name, **steps, "provenance": about}, json, "\n".join(text))


@app.command("card", rich_help_panel=INSPECT)
def model_card(reference: Reference) -> None:
    """Print an artifact's model card in Markdown: purpose, metrics, lineage, licence.

    Example: `tmctl artifacts card band-bundle > README.md`
    """
    from tinymusician.artifacts.model_card import model_card as render_card

    store = open_store()
    emit(None, False, render_card(_find(store, reference), manifests.list_manifests(store, warn)))


def _find(store: Store, reference: str) -> Manifest:
    """The manifest of an artifact, or of the one that an alias points at."""
    if is_alias(reference):
        reference = registry().newest(*split_reference(reference)).artifact
    return manifests.find(store, reference)


def _files_of_reference(reference: str) -> Sequence[FileEntry | ReleasedFile]:
    """The files of an artifact, or of an alias's release."""
    if is_alias(reference):
        return registry().newest(*split_reference(reference)).files
    return manifests.find(open_store(), reference).files


for command in (
    releases.publish,
    releases.promote,
    releases.rollback,
    releases.renew,
    releases.timestamp,
    releases.history,
    releases.aliases,
    releases.presign,
):
    app.command(rich_help_panel=RELEASE)(command)
app.command("import", rich_help_panel="Importing")(import_input.import_input)
app.command("gc", rich_help_panel="Garbage collection")(garbage_collection.collect)
