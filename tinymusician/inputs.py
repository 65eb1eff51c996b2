"""Inputs of jobs by name: an artifact, a file or folder of this machine, or one that every node of a cluster has.

An artifact is fetched to this machine once, and verified by its digests. Other names are those of the hub or packaged.
The store's modules are imported when they are needed: `benchmarks.gpu` runs without their packages.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from tinymusician.errors import DataError, DigestMismatchError, NotFoundError
from tinymusician.json_types import JsonObject

if TYPE_CHECKING:
    from tinymusician.artifacts.manifest import Manifest
    from tinymusician.artifacts.store import Store

REMOTE_SCHEMES = ("s3", "https", "http")


def scheme_of(name: str) -> str:
    """`artifact`, or the scheme of an address (`file`, `s3`, `https`, `http`); empty for a path, or another name."""
    if "@sha256:" in name:
        return "artifact"
    scheme, separator, _ = name.partition("://")
    return scheme if separator and scheme in ("file", *REMOTE_SCHEMES) else ""


def fetch_artifact(store: Store, manifest: Manifest, on_progress: Callable[[str], None] = lambda path: None) -> Path:
    """The folder of an artifact's files on this machine, where they stay while this process lives.

    Raises:
        NotFoundError, DigestMismatchError: the store lacks a file, or has another one under its digest.
        StoreError: the artifact does not fit into the cache.
    """
    from tinymusician.artifacts.atomic import sweep_drafts
    from tinymusician.artifacts.blobs import get_blob
    from tinymusician.artifacts.local_cache import user_cache
    from tinymusician.artifacts.manifest import check_file_path

    def write(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        sweep_drafts(folder, 0.0)
        for file in manifest.files:
            path = folder / check_file_path(file.path)
            if not path.exists():  # from an interrupted download
                get_blob(store, file.sha256, path)
                on_progress(file.path)

    return user_cache().get(manifest.digest, manifest.size, write, pin=True)


def input_path(name: str) -> Path:
    """The path of an input on this machine; an artifact of one file is that file.

    Raises:
        StoreError: the artifact does not exist, or cannot be fetched.
        DataError: the address is one of other machines, or this machine has no such file or folder.
    """
    scheme = scheme_of(name)
    if scheme == "artifact":
        from tinymusician.artifacts.import_input import FILE
        from tinymusician.artifacts.manifest import find
        from tinymusician.artifacts.open import open_store

        manifest = find(store := open_store(), name)
        folder = fetch_artifact(store, manifest)
        return folder / manifest.files[0].path if manifest.kind == FILE else folder
    if scheme in REMOTE_SCHEMES:
        raise DataError(f"{name}: is at another machine; import it with `tmctl artifacts import {name}`")
    if scheme == "file":
        path = Path(unquote(urlparse(name).path))
        if not path.exists():
            raise DataError(f"node {socket.gethostname()}: {name}: no such file or folder; every node needs it")
        return path
    return Path(name).expanduser()


def is_on_nodes(name: str) -> bool:
    """Whether this machine cannot read an input: only the nodes of the cluster have it, or only the job imports it."""
    return scheme_of(name) in ("file", "s3")


def input_label(name: str) -> str:
    """A short name of an input for reports: an artifact's name, or the last part of a path."""
    return name.partition("@")[0] if scheme_of(name) == "artifact" else Path(name).name


def read_json_file(name: str, file: str) -> JsonObject | None:
    """A JSON file of a model by its name, without the rest of the model; None if it has none, or not on this machine.

    Raises:
        ValueError: it is not JSON.
        StoreError: the store cannot be read.
    """
    data = _read(name, file)
    return None if data is None else json.loads(data.decode("utf-8-sig"))


def _read(name: str, file: str) -> bytes | None:
    scheme = scheme_of(name)
    if scheme == "artifact":
        return _read_artifact_file(name, file)
    if scheme == "s3":
        from tinymusician.artifacts.open import open_store

        bucket, _, key = name.removeprefix("s3://").partition("/")
        return _read_key(open_store(f"s3://{bucket}"), f"{key.strip('/')}/{file}".lstrip("/"))
    path = Path(unquote(urlparse(name).path) if scheme == "file" else name).expanduser() / file
    return path.read_bytes() if path.is_file() else None


def _read_artifact_file(name: str, file: str) -> bytes | None:
    from tinymusician.artifacts.blobs import blob_key
    from tinymusician.artifacts.manifest import find
    from tinymusician.artifacts.open import open_store

    store = open_store()
    digest = next((one.sha256 for one in find(store, name).files if one.path == file), None)
    data = _read_key(store, blob_key(digest)) if digest else None
    if data is not None and hashlib.sha256(data).hexdigest() != digest:
        raise DigestMismatchError(f"artifact {name}: the store has another {file} than its manifest says")
    return data


def _read_key(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except NotFoundError:
        return None
