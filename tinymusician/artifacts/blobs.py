"""Content-addressed files: a blob's key is its SHA-256, so it is stored once and checked whenever it is read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tinymusician.artifacts.store import Store, whole_file
from tinymusician.errors import Corrupt, StoreError


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def blob_key(digest: str) -> str:
    """Where the blob with this digest lies."""
    return f"blobs/sha256/{digest}"


def put_blob(store: Store, path: Path) -> str:
    """Store a file under its digest, unless it is there already; returns the digest."""
    digest = digest_of(path)
    if not store.exists(blob_key(digest)):
        store.upload(path, blob_key(digest))
    return digest


def get_blob(store: Store, digest: str, path: Path) -> None:
    """Fetch a blob to `path`; the file appears only after its digest was found right.

    Raises:
        Corrupt: the stored bytes have another digest.
        StoreError: `path` cannot be written.
    """
    try:
        with whole_file(path) as draft:
            store.download(blob_key(digest), draft)
            found = digest_of(draft)
            if found != digest:
                raise Corrupt(f"store {store.url}: {blob_key(digest)} holds bytes of SHA-256 {found}")
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from error
