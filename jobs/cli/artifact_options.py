"""Arguments and options that several commands on artifacts share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinymusician.errors import StoreError

ArtifactName = Annotated[str, typer.Argument(metavar="REF", help="NAME (the newest) or NAME@sha256:DIGEST.")]
Reference = Annotated[str, typer.Argument(metavar="REF", help="NAME (the newest), NAME@sha256:DIGEST or NAME@ALIAS.")]
ReleaseName = Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="A release, such as band-bundle@candidate.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RootDocument = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The publisher's root document instead (`tmctl signing-keys show --document FILE`).",
        show_default=False,
    ),
]


def read_root_document(path: Path) -> bytes:
    """A root document that is a file here.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"--root {path}: {error.strerror}") from None


def short_reference(reference: str) -> str:
    """A reference with the first 8 digits of its digest."""
    name, at, digest = reference.partition("@sha256:")
    return f"{name}@sha256:{digest[:8]}" if at else name
