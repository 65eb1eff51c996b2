"""Arguments and options that several commands on artifacts share."""

from __future__ import annotations

from typing import Annotated

import typer

ArtifactName = Annotated[str, typer.Argument(metavar="REF", help="NAME (the newest) or NAME@sha256:DIGEST.")]
Reference = Annotated[str, typer.Argument(metavar="REF", help="NAME (the newest), NAME@sha256:DIGEST or NAME@ALIAS.")]
ReleaseName = Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="A release, such as band-bundle@candidate.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def short_reference(reference: str) -> str:
    """A reference with the first 8 digits of its digest."""
    name, at, digest = reference.partition("@sha256:")
    return f"{name}@sha256:{digest[:8]}" if at else name
