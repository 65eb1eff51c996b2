"""`tmctl artifacts`: what the store holds, whether it is whole, how it is released, and how to take it out."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.output import emit, table, warn
from jobs.cli.signing_keys import registry
from tinymusician.artifacts import manifest as manifests
from tinymusician.artifacts.manifest import FileEntry
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.release import Release, ReleasedFile, split_reference
from tinymusician.errors import DigestMismatchError, NotFoundError
from tinymusician.recipe import PublishConfig, load_recipe, parse_recipe

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Look at the artifacts in the store, and release them."
)
Reference = Annotated[str, typer.Argument(metavar="REF", help="NAME (the newest) or NAME@sha256:DIGEST.")]
ReleaseName = Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="A release, such as band-bundle@candidate.")]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help="Whose gates and days count.", show_default="the artifact's own")
]
Json = Annotated[bool, typer.Option("--json", help="Print the manifest(s) as JSON.")]


@app.command("list")
def list_all(json: Json = False) -> None:
    """List all artifacts, oldest first."""
    manifests_found = manifests.list_manifests(open_store(), warn)
    rows = [
        [m.reference[: len(m.name) + 20], m.kind, f"{m.size / 1e6:.1f} MB", f"{m.created:%Y-%m-%d %H:%M}", m.licence]
        for m in manifests_found
    ]
    text = table(["ARTIFACT", "KIND", "SIZE", "CREATED", "LICENCE"], rows) if rows else "no artifacts yet"
    emit([{**m.model_dump(mode="json"), "digest": m.digest} for m in manifests_found], json, text)


@app.command()
def show(reference: Reference, json: Json = False) -> None:
    """Show one artifact: files, figures, lineage, licence."""
    manifest = manifests.find(open_store(), reference)
    lines = [
        f"artifact {manifest.reference}",
        f"kind {manifest.kind}, made {manifest.created:%Y-%m-%d %H:%M} UTC",
        f"licence {manifest.licence}",
    ]
    lines += ["files"] + [f"  {file.path}  {file.size} bytes  sha256:{file.sha256[:12]}" for file in manifest.files]
    lines += ["figures"] + [f"  {name}: {value}" for name, value in manifest.metrics.items()]
    lines += ["lineage"] + [f"  {name}: {value}" for name, value in manifest.lineage.items()]
    emit({**manifest.model_dump(mode="json"), "digest": manifest.digest}, json, "\n".join(lines))


@app.command()
def verify(reference: Reference) -> None:
    """Read every file of an artifact and compare it with its digest."""
    store = open_store()
    manifest = manifests.find(store, reference)
    with tempfile.TemporaryDirectory() as scratch:
        problems = manifests.verify(store, manifest, Path(scratch))
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise DigestMismatchError(
            f"artifact {manifest.reference}: {len(problems)} of {len(manifest.files)} files are damaged or missing"
        )
    print(
        f"artifact {manifest.reference}: {len(manifest.files)} files, {manifest.size} bytes, all as their digests say"
    )


@app.command()
def publish(
    reference: Reference,
    evaluation: Annotated[
        str | None, typer.Option(metavar="RUN", help="The `evaluate` run that judged it and its baseline.")
    ] = None,
    recipe: RecipeName = None,
    json: Json = False,
) -> None:
    """Sign an artifact as the newest release of the recipe's alias (`candidate`).

    Example: `tmctl artifacts publish band-bundle --evaluation band-evaluate-20260101-120000-ab12`
    """
    from jobs.release import evaluated
    from jobs.release import publish as signed

    store = open_store()
    manifest = manifests.find(store, reference)
    config = publish_config(recipe, manifest.reference)
    judged = evaluated(store, evaluation, manifest.reference, config.baseline) if evaluation else None
    _tell(signed(registry(), manifest, judged, config), json)


@app.command()
def promote(
    release: ReleaseName,
    to: Annotated[str, typer.Option("--to", metavar="ALIAS", help="The alias that is to point at it.")] = "stable",
    override: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Promote although a gate failed; the reason is kept and signed."),
    ] = None,
    recipe: RecipeName = None,
    json: Json = False,
) -> None:
    """Let an alias point at what another one points at, if its evaluation passes the recipe's gates.

    Example: `tmctl artifacts promote band-bundle@candidate --to stable`
    """
    from jobs.release import promote as moved

    source = registry().newest(*split_reference(release))
    _tell(moved(registry(), source, to, publish_config(recipe, source.artifact), override), json)


@app.command()
def rollback(
    release: ReleaseName,
    version: Annotated[int, typer.Option("--to", metavar="VERSION", help="Whose files count again.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept and signed.")],
    json: Json = False,
) -> None:
    """Release old files again as a new version: a device never goes back to an old one.

    Example: `tmctl artifacts rollback band-bundle@stable --to 3 --reason "version 4 hisses"`
    """
    name, alias = split_reference(release)
    releases = {one.version: one for one in registry().history(name, alias)}
    if version not in releases:
        raise NotFoundError(f"--to {version}: {release} has versions {', '.join(map(str, releases)) or 'none'}")
    _tell(registry().move(releases[version], alias, {"rolled_back_to": version, "reason": reason}), json)


@app.command()
def renew(json: Json = False) -> None:
    """Sign what every alias points at anew, before it expires; after `tmctl keys rotate` was interrupted, too."""
    for one in registry().renew():
        _tell(one, json)


@app.command()
def history(release: ReleaseName, json: Json = False) -> None:
    """List every version of an alias: when, what, and why."""
    releases = registry().history(*split_reference(release))
    rows = [
        [str(r.version), f"{r.created:%Y-%m-%d %H:%M}", f"{r.expires:%Y-%m-%d}", _short(r.artifact), why(r)]
        for r in releases
    ]
    text = table(["VERSION", "SIGNED", "EXPIRES", "ARTIFACT", "WHY"], rows) if rows else "no versions yet"
    emit([one.model_dump(mode="json") for one in releases], json, text)


@app.command()
def aliases(json: Json = False) -> None:
    """List all aliases with what they point at."""
    newest = [registry().newest(*one) for one in registry().aliases()]
    rows = [
        [r.reference, str(r.version), _short(r.artifact), f"{r.size / 1e6:.1f} MB", f"{r.expires:%Y-%m-%d}"]
        for r in newest
    ]
    text = table(["ALIAS", "VERSION", "ARTIFACT", "SIZE", "EXPIRES"], rows) if rows else "no aliases yet"
    emit([one.model_dump(mode="json") for one in newest], json, text)


@app.command()
def presign(
    release: ReleaseName,
    hours: Annotated[float, typer.Option(min=0.01, max=168, help="How long the addresses hold.")] = 24,
) -> None:
    """Print a list of presigned addresses, by which a device pulls a release from a closed bucket.

    The list holds for what the alias points at now: make it again after every promotion. Whoever has it can read these
    files; nobody can make a device take anything else.

    Example: `tmctl artifacts presign band-bundle@stable > stable.json`, put where your app's server has it, and
    `tmctl pull band-bundle@stable --to phone --from https://app.example/stable.json`
    """
    from jobs.release import addresses

    emit({"addresses": addresses(registry(), *split_reference(release), round(hours * 3600))}, True, "")


@app.command()
def diff(first: Reference, second: Reference, json: Json = False) -> None:
    """Compare two artifacts or aliases: which files differ, and what a device that has the first would load.

    Example: `tmctl artifacts diff band-bundle@stable band-bundle@candidate`
    """
    old, new = ({file.path: file for file in files_of(name)} for name in (first, second))
    there = {file.sha256 for file in old.values()}
    rows, load = [], {}
    for path in sorted(old.keys() | new.keys()):
        before, after = old.get(path), new.get(path)
        if before is not None and after is not None and before.sha256 == after.sha256:
            state = "same"
        else:
            state = "new" if before is None else "gone" if after is None else "changed"
        if after is not None and after.sha256 not in there:
            load[after.sha256] = after.size
        rows.append([path, state, f"{before.size if before else 0}", f"{after.size if after else 0}"])
    facts = {"files": {row[0]: row[1] for row in rows}, "to_load": sum(load.values())}
    text = f"{table(['FILE', 'STATE', 'BYTES', 'BYTES THEN'], rows)}\nto load: {sum(load.values()) / 1e6:.2f} MB"
    emit(facts, json, text)


@app.command()
def lineage(
    reference: Reference,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it: .svg, .png or .pdf.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Show what an artifact was made of, back to the first teacher, and what was made of it: data, recipe, code, runs.

    Example: `tmctl artifacts lineage band-bundle --picture lineage.svg`
    """
    from dataclasses import asdict

    from tinymusician.artifacts.lineage import backward, circumstances, forward, links

    store = open_store()
    name = manifests.find(store, reference).reference
    by_reference = {one.reference: one for one in manifests.list_manifests(store, warn)}
    every = links(list(by_reference.values()))
    back, on = backward(name, every), forward(name, every)
    if picture is not None:
        from tinymusician.artifacts.lineage_plot import draw

        draw(by_reference[name], [*back, *on], by_reference, picture)
    rows = [["made of", _short(one.origin), _short(one.made), one.how] for one in back]
    rows += [["became", _short(one.origin), _short(one.made), one.how] for one in on]
    about = {
        one: circumstances(by_reference[one])
        for one in dict.fromkeys([name, *(s.origin for s in back)])
        if one in by_reference
    }
    steps = {"made_of": [asdict(one) for one in back], "became": [asdict(one) for one in on]}
    text = [table(["", "FROM", "TO", "HOW"], rows)] if rows else [f"{_short(name)}: came from outside"]
    for one, said in about.items():
        text += ["", _short(one), *(f"  {what}: {value}" for what, value in said.items())]
    emit({"artifact": name, **steps, "circumstances": about}, json, "\n".join(text))


@app.command()
def card(reference: Reference) -> None:
    """Print an artifact's model card in Markdown: what it is, how good, made of what, under which licence.

    Example: `tmctl artifacts card band-bundle > README.md`
    """
    from tinymusician.artifacts.model_card import card as written

    store = open_store()
    name = reference
    if "@" in reference and "@sha256:" not in reference:
        name = registry().newest(*split_reference(reference)).artifact
    print(written(manifests.find(store, name), manifests.list_manifests(store, warn)))


@app.command()
def collect(
    keep: Annotated[int, typer.Option(min=1, help="The newest artifacts of every name that stay.")] = 3,
    shard_days: Annotated[
        float | None,
        typer.Option(
            min=7,
            metavar="DAYS",
            help="Also shards that are older: signals, samples, clips. They are made again when they are asked for.",
            show_default="all stay",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, it is only listed.")] = False,
    json: Json = False,
) -> None:
    """Find what nobody needs: no alias, no run that has not ended, none of the newest, nothing that these are made of.

    Nothing of the last seven days is touched, and no shard while a run has not ended. Release documents stay for ever:
    they are the history.
    """
    from tinymusician.artifacts import garbage_collection as garbage

    store = open_store()

    def find() -> garbage.GcPlan:
        return garbage.find_garbage(store, registry(), keep, shard_days)

    plan = find()
    gone = garbage.collect(store, find, lambda key: print(key, file=sys.stderr)) if yes else 0
    if shard_days is not None and plan.open_runs:
        warn(f"no shards are taken while runs have not ended: {', '.join(plan.open_runs)} (`tmctl stop` ends a run)")
    keys = {"artifacts": list(plan.artifacts), "shards": list(plan.shards), "blobs": list(plan.blobs)}
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in keys.items())
    said = f"{counts}, {plan.size / 1e6:.1f} MB"
    text = (
        f"{said}: removed"
        if yes
        else "\n".join([*(k for names in keys.values() for k in names), f"{said}; --yes removes them"])
    )
    emit({**keys, "bytes": plan.size, "removed": gone}, json, text)


def publish_config(recipe: str | None, artifact: str) -> PublishConfig:
    """The gates and days of a recipe: the one that is named, or the one that the artifact was made by."""
    if recipe is not None:
        return load_recipe(recipe).publish
    made = manifests.find(open_store(), artifact)
    return parse_recipe(made.recipe, made.name).publish


def files_of(reference: str) -> Sequence[FileEntry | ReleasedFile]:
    """The files of an artifact, or of what an alias points at."""
    if "@" in reference and "@sha256:" not in reference:
        return registry().newest(*split_reference(reference)).files
    return manifests.find(open_store(), reference).files


def why(release: Release) -> str:
    """What a release says of how it came about."""
    said = release.about.get("why", {})
    if "rolled_back_to" in said:
        return f"back to version {said['rolled_back_to']}: {said['reason']}"
    came = str(said.get("promoted_from", ""))
    return f"{came}, although gates failed: {said['overridden']}" if said.get("overridden") else came


def _tell(release: Release, as_json: bool) -> None:
    root = registry().roots()[-1]
    if root.expires < release.expires:
        warn(f"the root document expires before it, on {root.expires:%Y-%m-%d}; `tmctl keys renew` signs it for a year")
    what = f"version {release.version} is {_short(release.artifact)}"
    text = f"{release.reference}: {what}, until {release.expires:%Y-%m-%d}"
    emit(release.model_dump(mode="json"), as_json, text)


def _short(reference: str) -> str:
    name, at, digest = reference.partition("@sha256:")
    return f"{name}@sha256:{digest[:8]}" if at else name
