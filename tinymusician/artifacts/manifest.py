"""Manifests: an artifact's files, lineage, metrics and licence.

An artifact is a list of files, each a blob. Its manifest is canonical JSON under `artifacts/NAME/DIGEST.json`, where
DIGEST is the manifest's SHA-256. `NAME@sha256:DIGEST` is its permanent reference; `NAME` alone means the newest that a
trusted driver attests: whoever writes a manifest chooses its date.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tinymusician.artifacts.attestations import attestation_of
from tinymusician.artifacts.blobs import get_blob, put_blob
from tinymusician.artifacts.file_names import is_portable
from tinymusician.artifacts.store import Store, check_key
from tinymusician.errors import DigestMismatchError, NotFoundError, StoreError, UntrustedError
from tinymusician.json_types import JsonObject

BUNDLE_KINDS = ("bundle", "audio-lm-bundle")
"""The kinds of artifacts that players load, with a manifest.json of their own."""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_REFERENCE = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]*)(@sha256:(?P<digest>[0-9a-f]{6,64}))?")


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    size: int
    sha256: str


class Manifest(BaseModel):
    """An artifact. `lineage` contains the teacher's digest, data, run and code version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: str
    created: datetime
    files: tuple[FileEntry, ...]
    recipe: JsonObject
    lineage: JsonObject
    metrics: JsonObject
    licence: str

    def canonical(self) -> bytes:
        """The bytes whose digest identifies the artifact: sorted keys, no spaces, UTF-8."""
        content = self.model_dump(mode="json")
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @property
    def digest(self) -> str:
        """The SHA-256 of the canonical manifest."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @property
    def bundle_digest(self) -> str | None:
        """The SHA-256 of a bundle's own manifest.json: what the endpoint, the page and devices call the bundle."""
        if self.kind not in BUNDLE_KINDS:
            return None
        return next((file.sha256 for file in self.files if file.path == "manifest.json"), None)

    @property
    def reference(self) -> str:
        """The artifact's permanent reference."""
        return f"{self.name}@sha256:{self.digest}"

    @property
    def key(self) -> str:
        """The key of the manifest in the store."""
        return f"artifacts/{self.name}/{self.digest}.json"

    @property
    def size(self) -> int:
        """The total size of all files in bytes."""
        return sum(file.size for file in self.files)


def publish(store: Store, folder: Path, **facts: Any) -> Manifest:
    """Store every file of `folder`, then the manifest; `facts` are the manifest's other fields.

    Raises:
        StoreError: the folder contains a link, which could lead anywhere, or the store cannot be written.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    for path in paths:
        if path.is_symlink():
            raise StoreError(f"artifact {facts.get('name')}: {path} is a link; put the file itself there")
    files = tuple(
        FileEntry(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=put_blob(store, path))
        for path in paths
    )
    return write_manifest(store, Manifest(created=now(), files=files, **facts))


def write_manifest(store: Store, manifest: Manifest) -> Manifest:
    """Store the manifest of files that the store already has."""
    store.put(manifest.key, manifest.canonical())
    return manifest


def now() -> datetime:
    """The time that a new manifest states."""
    return datetime.now(UTC).replace(microsecond=0)


def find(store: Store, reference: str) -> Manifest:
    """The manifest of NAME or NAME@sha256:DIGEST (a prefix of at least six digits, of the artifact or of its bundle).

    Only all 64 digits of an artifact's own digest say what is in it. Whoever can write to the store can find another
    artifact for a few of them, and list any bundle among its files: so these need an attestation.

    Raises:
        StoreError: it is not a reference, none or several artifacts match, or the manifest is damaged.
        UntrustedError: no trusted driver attests that it made one of them, and the digest is not complete.
    """
    parts = _REFERENCE.fullmatch(reference)
    if parts is None:
        raise StoreError(
            f"artifact {reference!r}: the form is NAME or NAME@sha256:DIGEST, with 6 or more hexadecimal digits; "
            "a release NAME@ALIAS is fetched into a folder by `tmctl pull`"
        )
    prefix = parts["digest"] or ""
    keys = [entry.key for entry in store.list(f"artifacts/{parts['name']}/{prefix}")]
    if not prefix and keys:
        return _read(store, _newest_attested(store, parts["name"], keys))
    fitting = [_read(store, key) for key in keys] or _with_bundle(store, parts["name"], prefix)
    if not fitting:
        raise NotFoundError(f"artifact {reference!r}: not in {store.url}; `tmctl artifacts list` shows those that are")
    if len(fitting) > 1:
        raise StoreError(f"artifact {reference!r}: {len(fitting)} digests begin so; give more digits")
    if fitting[0].digest != prefix:
        _check_attested(store, fitting[0], reference)
    return fitting[0]


def _check_attested(store: Store, manifest: Manifest, reference: str) -> None:
    """Check that a trusted driver attests an artifact, which a reference names by less than its digest.

    Raises:
        UntrustedError: none does.
    """
    try:
        attestation_of(store, manifest.reference)
    except UntrustedError as error:
        raise UntrustedError(
            f"artifact {reference!r}: {error}. All 64 digits of its digest name it without: {manifest.reference}"
        ) from error


def _newest_attested(store: Store, name: str, keys: Sequence[str]) -> str:
    """The key of the artifact whose attestation has the latest date; artifacts without a trusted one do not count."""
    attested: list[tuple[datetime, str]] = []
    reason = ""
    for key in keys:
        try:
            attested.append((attestation_of(store, f"{name}@sha256:{Path(key).stem}").created, key))
        except UntrustedError as error:
            reason = str(error)
    if not attested:
        raise UntrustedError(
            f"artifact {name!r}: {len(keys)} in {store.url}, and which is the newest is not certain: "
            f"{reason}. Its digest names one: {name}@sha256:{Path(keys[0]).stem}"
        )
    return max(attested)[1]


def list_named(store: Store, name: str) -> list[Manifest]:
    """The artifacts of a name, oldest first.

    Raises:
        StoreError: it is no name of artifacts.
    """
    if _NAME.fullmatch(name) is None:
        raise StoreError(f"artifact {name!r}: lower-case letters, digits and hyphens are needed")
    return _by_age([_read(store, entry.key) for entry in store.list(f"artifacts/{name}/")])


def _with_bundle(store: Store, name: str, prefix: str) -> list[Manifest]:
    """The artifacts of a name whose bundle's digest begins with a prefix."""
    every = [_read(store, entry.key) for entry in store.list(f"artifacts/{name}/")]
    return [manifest for manifest in every if prefix and (manifest.bundle_digest or "").startswith(prefix)]


def list_manifests(store: Store, on_damaged: Callable[[str], None]) -> list[Manifest]:
    """Every artifact, oldest first; `on_damaged` receives why a manifest cannot be read."""
    manifests = []
    for entry in store.list("artifacts/"):
        try:
            manifests.append(_read(store, entry.key))
        except DigestMismatchError as error:
            on_damaged(str(error))
    return _by_age(manifests)


def _by_age(manifests: list[Manifest]) -> list[Manifest]:
    return sorted(manifests, key=lambda manifest: (manifest.created, manifest.digest))


def verify(store: Store, manifest: Manifest, scratch: Path) -> list[str]:
    """Download every file and compare digests; returns one line per problem."""
    problems = []
    for file in manifest.files:
        try:
            get_blob(store, file.sha256, scratch / "blob")
            if (scratch / "blob").stat().st_size != file.size:
                problems.append(
                    f"{file.path}: {(scratch / 'blob').stat().st_size} bytes; the manifest says {file.size}"
                )
        except StoreError as error:
            problems.append(f"{file.path}: {error}")
    return problems


def check_file_path(path: str) -> str:
    """Return the path of an artifact's file if it stays in the artifact's folder.

    Raises:
        StoreError: it does not; on Windows, `C:/x` and names of devices would not either.
    """
    if sys.platform == "win32" and not all(map(is_portable, path.split("/"))):
        raise StoreError(f"file {path!r}: is not a name that Windows accepts")
    return check_key(path)


def fetch(
    store: Store, manifest: Manifest, folder: Path, on_progress: Callable[[str], None] = lambda path: None
) -> None:
    """Write an artifact's files into `folder`, each verified before it appears.

    Raises:
        NotFoundError, DigestMismatchError: the store lacks a file, or has another one under its digest.
    """
    for file in manifest.files:
        get_blob(store, file.sha256, folder / check_file_path(file.path))
        on_progress(file.path)


def _read(store: Store, key: str) -> Manifest:
    data = store.get(key)
    if hashlib.sha256(data).hexdigest() != Path(key).stem:
        raise DigestMismatchError(f"store {store.url}: {key} does not hold the manifest of that digest")
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise DigestMismatchError(
            f"store {store.url}: {key} is not a manifest ({error.error_count()} fields are wrong)"
        ) from error
