"""Imports files and folders as artifacts of kind `file`, `folder` or `model`, so that every node can fetch them.

A source is a path, `s3://BUCKET/KEY` (an object, or all objects below a prefix), or `https://…`. An archive (.zip,
.tar, .tar.gz) becomes a folder. `#sha256=HEX` after an https address is the digest that the download must have.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Collection, Iterator
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urldefrag, urlparse

from tinymusician.artifacts.atomic import DRAFT, sweep_drafts
from tinymusician.artifacts.attestations import ArtifactAttestation, attest, is_attested, read_signed, write_signed
from tinymusician.artifacts.blobs import digest_of, put_blob
from tinymusician.artifacts.local_cache import user_cache
from tinymusician.artifacts.manifest import FileEntry, Manifest, find, list_named, now, write_manifest
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.sources import HttpSource, without_secrets
from tinymusician.artifacts.store import Store, StoreEntry, check_key
from tinymusician.config_model import Document
from tinymusician.errors import DigestMismatchError, NotFoundError, StoreError, TransientStoreError, UntrustedError

FILE, FOLDER, MODEL = "file", "folder", "model"
_S3 = "s3://"
UNKNOWN_LICENCE = "not stated"
_MODEL_FILES = ("config.json", "state_dict.bin")
_BUNDLE_MANIFEST = "manifest.json"
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_ATTEMPTS = 5
_LARGE = 100_000_000
"""Bytes of files whose progress is reported one by one."""
_LICENCE_LINE = re.compile(r"^license:\s*['\"]?([\w.+-]+)", re.MULTILINE)
ProgressCallback = Callable[[str], None]


def import_path(
    store: Store,
    path: Path,
    name: str,
    source: str,
    licence: str | None = None,
    patterns: Collection[str] = ("*",),
    on_progress: ProgressCallback = lambda line: None,
) -> Manifest:
    """Store a file, or the files of a folder that match `patterns`, as an artifact; links are followed.

    Content that the newest artifact of this name already has is not stored again. The artifact is attested.

    Raises:
        StoreError: there is nothing to import, the name has artifacts of a job, or the store cannot be written.
        KeyFileError: there is no job key, and none can be created.
    """
    paths = [path] if path.is_file() else _files(path, patterns)
    if not paths:
        raise StoreError(f"{source}: no such file or folder, or it is empty")
    root = path.parent if path.is_file() else path
    names = [one.relative_to(root).as_posix() for one in paths]
    kind = FILE if path.is_file() else MODEL if set(_MODEL_FILES) & set(names) else FOLDER
    before = _imported_as(store, name)
    files = tuple(_stored(store, one, key, on_progress) for one, key in zip(paths, names, strict=True))
    if before and before[-1].files == files and licence in (None, before[-1].licence):
        return before[-1]
    manifest = Manifest(
        name=name,
        kind=kind,
        created=now(),
        files=files,
        recipe={},
        lineage={"source": _without_secrets(source)},
        metrics={},
        licence=licence or _licence_of(root),
    )
    attest(store, ArtifactAttestation(artifact=manifest.reference, created=now()))
    return write_manifest(store, manifest)


def _stored(store: Store, path: Path, name: str, on_progress: ProgressCallback) -> FileEntry:
    size = path.stat().st_size
    if size >= _LARGE:
        on_progress(f"{name}, {size / 1e6:.0f} MB")
    return FileEntry(path=name, size=size, sha256=put_blob(store, path))


def _imported_as(store: Store, name: str) -> list[Manifest]:
    """The earlier imports of a name that are attested, oldest first.

    Raises:
        StoreError: the name has artifacts of a job.
    """
    manifests = list_named(store, name)
    if taken := next((one for one in manifests if one.kind not in (FILE, FOLDER, MODEL)), None):
        raise StoreError(f"artifact {name!r}: is the name of a {taken.kind}; choose another --name")
    return [one for one in manifests if is_attested(store, one.reference)]


@contextlib.contextmanager
def _downloaded(address: str, on_progress: ProgressCallback) -> Iterator[Path]:
    """A local copy of what is at an `https://` address: a file, or a folder.

    Raises:
        StoreError: it cannot be downloaded.
        DigestMismatchError: it has another digest than the address says.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _base_name(address)
        _download_url(address, path, on_progress)
        with _unpacked(path) as content:
            yield content


def import_address(
    store: Store, address: str, name: str, licence: str | None = None, on_progress: ProgressCallback = lambda line: None
) -> Manifest:
    """Import what is at an `s3://` or `https://` address; objects in S3 that have not changed since are not read again.

    Raises:
        StoreError: it cannot be downloaded, changes meanwhile, or the store cannot be written.
    """
    if not address.startswith(_S3):
        with _downloaded(address, on_progress) as path:
            return import_path(store, path, name, address, licence, on_progress=on_progress)
    before = imported_before(store, address)
    if before is not None and before.name == name and licence in (None, before.licence):
        return before
    objects = _list_objects(address)
    with _unpacked(_fetch_objects(objects, on_progress)) as path:
        manifest = import_path(store, path, name, address, licence, on_progress=on_progress)
    if _list_objects(address).entries != objects.entries:
        raise StoreError(f"{address}: has changed while it was imported; import it again")
    write_signed(store, objects.note_key, "import", _ImportNote(objects=objects.version, artifact=manifest.reference))
    return manifest


def imported_before(store: Store, address: str) -> Manifest | None:
    """The artifact that was made of the objects at an `s3://` address, if none of them has changed since.

    Raises:
        NotFoundError: there are no such objects.
    """
    objects = _list_objects(address)
    with contextlib.suppress(NotFoundError, UntrustedError):
        note = read_signed(store, objects.note_key, "import", _ImportNote)
        return find(store, note.artifact) if note.objects == objects.version else None
    return None


class _ImportNote(Document):
    """What was made of a version of objects."""

    objects: str
    artifact: str


def default_name(source: str) -> str:
    """The name of an imported artifact: the last part of its source, without endings."""
    stem = _base_name(source)
    for ending in (*_ARCHIVES, PurePosixPath(stem).suffix):
        stem = stem.removesuffix(ending)
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:64] or "input"


def _base_name(address: str) -> str:
    is_url = "://" in address and not address.startswith(_S3)
    return PurePosixPath(unquote(urlparse(address).path) if is_url else address.rstrip("/")).name or "download"


def _files(folder: Path, patterns: Collection[str]) -> list[Path]:
    every = [Path(place) / name for place, _, names in os.walk(folder, followlinks=True) for name in names]
    chosen = (path for path in every if path.is_file() and not path.name.startswith(DRAFT))
    return sorted(path for path in chosen if any(fnmatch(path.name, pattern) for pattern in patterns))


def _without_secrets(source: str) -> str:
    """A source without what may be a secret: the query of a presigned URL, a user's name and password."""
    return without_secrets(source) if source.startswith(("https://", "http://")) else source


def _licence_of(folder: Path) -> str:
    """The licence that a bundle's manifest states, or a model card in the hub's form."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return str(json.loads((folder / _BUNDLE_MANIFEST).read_bytes())["licence"])
    card = folder / "README.md"
    match = _LICENCE_LINE.search(card.read_text("utf-8", errors="replace")) if card.is_file() else None
    return match[1] if match else UNKNOWN_LICENCE


class _Objects(NamedTuple):
    """The object with a key, or those below it; keys that end in a slash mark folders, and are none."""

    address: str
    bucket: Store
    key: str
    entries: list[StoreEntry]

    @property
    def is_single(self) -> bool:
        return self.entries[0].key == self.key

    @property
    def version(self) -> str:
        """Changes when an object is added, removed or written again."""
        return sha256(json.dumps([self.address, self.entries]).encode()).hexdigest()

    @property
    def note_key(self) -> str:
        """The key under which the store notes what was made of them."""
        return f"imports/{self.version}.json"


def _list_objects(address: str) -> _Objects:
    """The objects of an `s3://` address, in which `?`, `#` and `%` are characters of keys.

    Raises:
        NotFoundError: there are none.
    """
    name, _, path = address.removeprefix(_S3).partition("/")
    bucket, key = open_store(f"{_S3}{name}"), path.strip("/")
    entries = [entry for entry in bucket.list(key) if entry.key == key]
    entries = entries or [one for one in bucket.list(f"{key}/" if key else "") if not one.key.endswith("/")]
    if not entries:
        raise NotFoundError(f"{address}: no such object, and none below it")
    return _Objects(address, bucket, key, entries)


def _fetch_objects(objects: _Objects, on_progress: ProgressCallback) -> Path:
    """The file or folder in this machine's cache; an interrupted download goes on."""
    single = PurePosixPath(objects.key).name

    def write(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        sweep_drafts(folder, 0.0)
        for entry in objects.entries:
            path = folder / check_key(single if objects.is_single else entry.key.removeprefix(f"{objects.key}/"))
            if not path.exists():
                if entry.size >= _LARGE:
                    on_progress(f"{entry.key}, {entry.size / 1e6:.0f} MB")
                path.parent.mkdir(parents=True, exist_ok=True)
                objects.bucket.download(entry.key, path)

    size = sum(entry.size for entry in objects.entries)
    folder = user_cache().get(f"s3-{objects.version}", size, write, pin=True)
    return folder / single if objects.is_single else folder


def _download_url(address: str, path: Path, on_progress: ProgressCallback) -> None:
    """Download a URL to a file; a broken connection continues where it ended."""
    url, fragment = urldefrag(address)
    expected = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
    if urlparse(url).scheme == "http" and expected is None:
        raise StoreError(f"{without_secrets(url)}: is not encrypted; give its digest (#sha256=HEX), or use https")
    source, tag = _Url(url), ""
    for attempt in range(_ATTEMPTS):
        start = path.stat().st_size if path.exists() else 0
        try:
            with source.open("content", start, tag) as response, path.open("r+b" if start else "wb") as file:
                file.truncate(response.start)
                file.seek(response.start)
                tag = response.tag
                on_progress(f"{source.url}, from byte {response.start}")
                for chunk in response.chunks:
                    file.write(chunk)
            break
        except TransientStoreError:
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(2**attempt)
    if expected is not None and (actual := digest_of(path)) != expected:
        raise DigestMismatchError(f"{source.url}: has SHA-256 {actual}; {expected} is expected")


class _Url(HttpSource):
    """A source with one value, at its own URL, whose query may say which."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._whole_url = url

    def _url_of(self, key: str) -> str:
        return self._whole_url


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """The folder in an archive, or else the file itself.

    Raises:
        StoreError: it cannot be unpacked, is larger than the free disk, or has files outside its folder.
    """
    if not path.name.endswith(_ARCHIVES):
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            _unpack(path, Path(scratch))
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise StoreError(f"archive {path.name}: cannot be unpacked ({error})") from error
        entries = list(Path(scratch).iterdir())
        yield entries[0] if len(entries) == 1 and entries[0].is_dir() else Path(scratch)


def _unpack(path: Path, folder: Path) -> None:
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            _check_size(path, sum(info.file_size for info in archive.infolist()), folder)
            archive.extractall(folder)  # noqa: S202 - leaves out `..` and leading slashes
        return
    with tarfile.open(path) as archive:
        _check_size(path, sum(member.size for member in archive), folder)
        archive.extractall(folder, filter="data")


def _check_size(path: Path, size: int, folder: Path) -> None:
    if size > (free := shutil.disk_usage(folder).free):
        raise StoreError(f"archive {path.name}: has {size / 1e9:.3g} GB unpacked, and {free / 1e9:.3g} are free")
