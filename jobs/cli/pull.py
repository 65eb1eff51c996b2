"""`tmctl pull`: pull a release to a device's folder."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.artifact_options import RootDocument, read_root_document
from jobs.cli.output import emit, print_progress
from tinymusician.artifacts.download import BandwidthLimiter
from tinymusician.artifacts.installation import InstalledVersion
from tinymusician.artifacts.manifest import fetch, find
from tinymusician.artifacts.pull import AvailableUpdate, PullClient
from tinymusician.artifacts.reference import ROOT_KEY_VARIABLE, is_alias
from tinymusician.artifacts.sources import open_source
from tinymusician.artifacts.store import Store

_SHOWN_SECONDS = 0.5


# Long: its parameters are the options of the command.
def pull(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REF", help="A release (band-bundle@stable); or an artifact, NAME or NAME@sha256:DIGEST."
        ),
    ],
    to: Annotated[Path, typer.Option("--to", help="The device's folder, or the artifact's; created if missing.")],
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="URL",
            help="The URL of a store (https, file, s3), or a list of `tmctl artifacts presign`; several are mirrors.",
            show_default="store",
        ),
    ] = None,
    root_key: Annotated[
        str | None,
        typer.Option(
            metavar="HEX", envvar=ROOT_KEY_VARIABLE, help="The publisher's public root key; required the first time."
        ),
    ] = None,
    root: RootDocument = None,
    check: Annotated[bool, typer.Option("--check", help="Only report whether there is an update.")] = False,
    bandwidth_limit: Annotated[
        float, typer.Option(min=0, metavar="KB/S", help="The maximum bandwidth.", show_default="none")
    ] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Pull a release to a folder: verified by its signature, resumed after an interruption, switched atomically.

    Only changed files are downloaded. After any failure the installed version stays. `tmctl generate --model FOLDER`
    plays it. An artifact without a release is downloaded from the store, each file verified by its digest.

    Examples:
    - `tmctl pull band-bundle@stable --to phone --root-key $(tmctl signing-keys show --json | jq -r .root[0])`

    - `tmctl pull band-bundle@stable --to phone --from https://music.example/store --check`

    - `tmctl pull band --to my-student`
    """
    from tinymusician.artifacts.open import open_store

    if not is_alias(reference):
        _pull_unreleased(open_store(), reference, to)
        return
    urls = source or [open_store().url]
    document = read_root_document(root) if root is not None else None
    client = PullClient(reference, to, [open_source(url) for url in urls], root_key, root_document=document)
    if check:
        _print_update(client.check(), json)
        return
    version = client.pull(_ProgressPrinter(), BandwidthLimiter(bandwidth_limit * 1000))
    _print_version(version, to, json)


def _pull_unreleased(store: Store, reference: str, to: Path) -> None:
    manifest = find(store, reference)
    fetch(store, manifest, to, print_progress)
    print(to)


class _ProgressPrinter:
    """A line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._shown = 0.0

    def __call__(self, path: str, done: int, size: int) -> None:
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if done < size and now - self._shown < (_SHOWN_SECONDS if terminal else 20 * _SHOWN_SECONDS):
            return
        self._shown = now
        line = f"{done / 1e6:8.1f} of {size / 1e6:.1f} MB  {path}"
        print(f"\r{line:<70}" if terminal else line, end="" if terminal and done < size else "\n", file=sys.stderr)


def _print_update(update: AvailableUpdate, as_json: bool) -> None:
    release = update.version.release
    facts = {
        "new": update.is_new,
        "version": release.version,
        "artifact": release.artifact,
        "download_bytes": update.missing,
    }
    news = f"version {release.version}, {update.missing / 1e6:.1f} of {release.size / 1e6:.1f} MB to download"
    emit(facts, as_json, f"{release.reference}: {news if update.is_new else f'version {release.version} is installed'}")


def _print_version(version: InstalledVersion, to: Path, as_json: bool) -> None:
    release, folder = version.release, to / version.folder
    facts = {"version": release.version, "artifact": release.artifact, "folder": os.fspath(folder)}
    emit(facts, as_json, f"{release.reference}: version {release.version}, {release.licence}\n{folder}")
