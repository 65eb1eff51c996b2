"""`tmctl artifacts publish|promote|rollback|renew|timestamp|history|aliases|presign`: signs releases, moves aliases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.artifact_options import ArtifactName, Json, ReleaseName, short_reference
from jobs.cli.output import emit, table, warn
from jobs.cli.signing_keys import registry
from tinymusician.artifacts import manifest as manifests
from tinymusician.artifacts.atomic import atomic_write
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.reference import split_reference
from tinymusician.artifacts.registry import TIMESTAMP_DAYS
from tinymusician.artifacts.release import Release
from tinymusician.artifacts.timestamp import LONGEST_DAYS
from tinymusician.errors import NotFoundError
from tinymusician.recipe import load_recipe

RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="The recipe whose gates and days apply.",
        show_default="the one that was submitted to make the artifact",
    ),
]


def publish(
    reference: ArtifactName,
    evaluation: Annotated[
        str | None, typer.Option(metavar="RUN", help="The `evaluate` run of the artifact and its baseline.")
    ] = None,
    recipe: RecipeName = None,
    model_signing_key: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="An EC key of its own, to also write an OpenSSF model signature."),
    ] = None,
    signature_file: Annotated[
        Path, typer.Option("--model-signature", metavar="FILE", help="Where that signature is written.")
    ] = Path("model.sig"),
    json: Json = False,
) -> None:
    """Sign an artifact as the newest release of the recipe's alias (`candidate`).

    A trusted driver must attest that its job made the artifact, and sign the evaluation's figures: the store is not
    trusted. `tmctl signing-keys job` shows which drivers are trusted here.

    Examples:
    - `tmctl artifacts publish band-bundle --evaluation band-evaluate-20260101-120000-ab12`

    - `tmctl artifacts publish band-bundle --model-signing-key ec.pem`, then `model_signing verify key` elsewhere
    """
    from jobs.release import publish as signed
    from jobs.release import publish_config, release_metrics
    from tinymusician.artifacts.model_signature import model_signature

    store = open_store()
    manifest = manifests.find(store, reference)
    config = load_recipe(recipe).publish if recipe is not None else publish_config(store, manifest.reference)
    judged = release_metrics(store, evaluation, manifest.reference, config.baseline) if evaluation else None
    signature = None if model_signing_key is None else model_signature(store, manifest, model_signing_key)
    release = signed(registry(), manifest, judged, config)
    if signature is not None:
        with atomic_write(signature_file) as draft:
            draft.write_bytes(signature)
    _print_release(release, json)


def promote(
    release: ReleaseName,
    to: Annotated[str, typer.Option("--to", metavar="ALIAS", help="The alias to move.")] = "stable",
    override: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Promote although a gate failed; the reason is stored and signed."),
    ] = None,
    recipe: RecipeName = None,
    json: Json = False,
) -> None:
    """Point an alias at the artifact of another one, if its evaluation passes the recipe's gates.

    Example: `tmctl artifacts promote band-bundle@candidate --to stable`
    """
    from jobs.release import promote as moved
    from jobs.release import released_config

    source = registry().newest(*split_reference(release))
    config = load_recipe(recipe).publish if recipe is not None else released_config(source)
    _print_release(moved(registry(), source, to, config, override), json)


def rollback(
    release: ReleaseName,
    version: Annotated[int, typer.Option("--to", metavar="VERSION", help="The version whose files to release again.")],
    reason: Annotated[str, typer.Option(help="The reason; it is stored and signed.")],
    json: Json = False,
) -> None:
    """Release old files again as a new version: a device never goes back to an old version.

    Example: `tmctl artifacts rollback band-bundle@stable --to 3 --reason "version 4 hisses"`
    """
    name, alias = split_reference(release)
    releases = {one.version: one for one in registry().history(name, alias)}
    if version not in releases:
        raise NotFoundError(f"--to {version}: {release} has versions {', '.join(map(str, releases)) or 'none'}")
    _print_release(registry().move(releases[version], alias, {"rolled_back_to": version, "reason": reason}), json)


def renew(json: Json = False) -> None:
    """Sign the newest release of every alias again: before it expires, or after an interrupted key rotation."""
    for one in registry().renew():
        _print_release(one, json)


def timestamp(
    days: Annotated[int, typer.Option(min=1, max=LONGEST_DAYS, help="How long it is valid.")] = TIMESTAMP_DAYS,
    json: Json = False,
) -> None:
    """Confirm the newest release of every alias for some days: a job for every day, with the timestamp key alone.

    Only where the root document has a timestamp key (`tmctl signing-keys create --timestamp`).

    Example: `TMCTL_KEYS=/run/secrets/timestamp tmctl artifacts timestamp --days 3`
    """
    stamps = registry().stamp(days)
    rows = [[one.reference, str(one.version), f"{one.expires:%Y-%m-%d %H:%M}"] for one in stamps]
    text = table(["ALIAS", "VERSION", "CONFIRMED UNTIL"], rows) if rows else "no aliases yet"
    emit([one.model_dump(mode="json") for one in stamps], json, text)


def history(release: ReleaseName, json: Json = False) -> None:
    """List every version of an alias with its date, artifact and reason."""
    releases = registry().history(*split_reference(release))
    rows = [
        [
            str(r.version),
            f"{r.created:%Y-%m-%d %H:%M}",
            f"{r.expires:%Y-%m-%d}",
            short_reference(r.artifact),
            _reason_of(r),
        ]
        for r in releases
    ]
    text = table(["VERSION", "SIGNED", "EXPIRES", "ARTIFACT", "REASON"], rows) if rows else "no versions yet"
    emit([one.model_dump(mode="json") for one in releases], json, text)


def aliases(json: Json = False) -> None:
    """List all aliases with their releases."""
    newest = [registry().newest(*one) for one in registry().aliases()]
    rows = [
        [r.reference, str(r.version), short_reference(r.artifact), f"{r.size / 1e6:.1f} MB", f"{r.expires:%Y-%m-%d}"]
        for r in newest
    ]
    text = table(["ALIAS", "VERSION", "ARTIFACT", "SIZE", "EXPIRES"], rows) if rows else "no aliases yet"
    emit([one.model_dump(mode="json") for one in newest], json, text)


def presign(
    release: ReleaseName,
    hours: Annotated[float, typer.Option(min=0.01, max=168, help="How long the URLs are valid.")] = 24,
) -> None:
    """Print presigned URLs, with which a device pulls a release from a private bucket.

    The list is for the alias's current release: make it again after every promotion. Anyone with the list can read
    these files, but cannot make a device accept others.

    Example: `tmctl artifacts presign band-bundle@stable > stable.json`; put the file on your app's server, and run
    `tmctl pull band-bundle@stable --to phone --from https://app.example/stable.json`
    """
    from jobs.release import presigned_urls

    emit({"addresses": presigned_urls(registry(), *split_reference(release), round(hours * 3600))}, True, "")


def _reason_of(release: Release) -> str:
    """A release's reason, for the history."""
    said = release.about.get("why", {})
    if "rolled_back_to" in said:
        return f"back to version {said['rolled_back_to']}: {said['reason']}"
    came = str(said.get("promoted_from", ""))
    return f"{came}, although gates failed: {said['overridden']}" if said.get("overridden") else came


def _print_release(release: Release, as_json: bool) -> None:
    root = registry().roots()[-1]
    if root.expires < release.expires:
        warn(
            f"the root document expires first, on {root.expires:%Y-%m-%d}; "
            "`tmctl signing-keys renew` extends it by a year"
        )
    what = f"version {release.version} is {short_reference(release.artifact)}"
    text = f"{release.reference}: {what}, until {release.expires:%Y-%m-%d}"
    emit(release.model_dump(mode="json"), as_json, text)
