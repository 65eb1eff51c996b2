"""`tmctl artifacts import`: makes an artifact of a model, of prompts or clips, wherever they are."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.artifact_options import Json
from jobs.cli.output import emit
from tinymusician.artifacts.import_input import default_name, import_address, import_path
from tinymusician.artifacts.manifest import Manifest
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.store import Store
from tinymusician.inputs import REMOTE_SCHEMES, scheme_of

Source = Annotated[
    str,
    typer.Argument(
        help="A file or folder, s3://BUCKET/KEY, https://… (an archive is unpacked), or a hub id OWNER/NAME."
    ),
]
Name = Annotated[
    str | None, typer.Option(metavar="NAME", help="The artifact's name.", show_default="the source's last part")
]
Licence = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT", help="The licence of the content, such as CC-BY-4.0.", show_default="that of its README.md"
    ),
]


def import_input(source: Source, name: Name = None, licence: Licence = None, json: Json = False) -> None:
    """Store a model, prompts, clips or another input as an artifact, which every node of a cluster can fetch.

    A recipe names it like a path: `--set teacher.model=NAME`. Each node downloads it once. Content that the store
    already has is not stored again.

    Examples:
    - `tmctl artifacts import ./musicgen-large --licence CC-BY-NC-4.0`

    - `tmctl artifacts import facebook/musicgen-large`

    - `tmctl artifacts import s3://bucket/prompts.jsonl --name prompts`
    """
    from tinymusician.models.checkpoint_files import check_model, model_type

    store, report = open_store(), partial(print, file=sys.stderr)
    artifact_name, path = name or default_name(source), Path(source).expanduser()
    if scheme_of(source) in REMOTE_SCHEMES:
        manifest = import_address(store, source, artifact_name, licence, report)
    elif path.exists() or "/" not in source or source.startswith((".", "/", "~")):
        if (path / "config.json").is_file() and model_type(path) == "musicgen":
            check_model(str(path.absolute()))
        manifest = import_path(store, path, artifact_name, str(path.absolute()), licence, on_progress=report)
    else:
        manifest = _import_from_hub(store, source, artifact_name, licence)
    text = f"artifact {manifest.reference}\n{manifest.kind}, {len(manifest.files)} files, {manifest.size / 1e6:.1f} MB"
    emit({"artifact": manifest.reference, "kind": manifest.kind, "size": manifest.size}, json, text)


def _import_from_hub(store: Store, source: str, name: str, licence: str | None) -> Manifest:
    """Import the safetensors, configurations and tokenizer of a hub model."""
    from tinymusician.models.hub import FILES, download, split_revision

    folder = download(source)
    origin = f"{split_revision(source)[0]}@{folder.name}"  # a snapshot's folder has the name of its commit
    return import_path(store, folder, name, origin, licence, FILES, partial(print, file=sys.stderr))
