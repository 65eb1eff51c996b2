"""Content-addressed files: a blob's key is its SHA-256, so it is stored once and verified on every read."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path

from tinymusician.artifacts.atomic import atomic_write
from tinymusician.artifacts.store import DAY, Store
from tinymusician.errors import DigestMismatchError, StoreError

_DIGEST = re.compile(r"[0-9a-f]{64}")
GRACE = 7 * DAY
"""How long an unreferenced value is retained; publishing takes less."""


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(digest: str) -> str:
    """Return a SHA-256 in hexadecimal, which may become a file's name.

    Raises:
        DigestMismatchError: it is none.
    """
    if _DIGEST.fullmatch(digest) is None:
        raise DigestMismatchError(f"digest {digest!r}: 64 hexadecimal digits are needed")
    return digest


def blob_key(digest: str) -> str:
    """The key of the blob with this digest."""
    return f"blobs/sha256/{digest}"


def put_blob(store: Store, path: Path) -> str:
    """Store a file under its digest, unless the store has it in this size; returns the digest.

    An old blob is stored again, so that garbage collection does not remove it before its manifest is written.
    """
    digest, size = digest_of(path), path.stat().st_size
    key = blob_key(digest)
    young = time.time() - GRACE / 2
    if not any(entry.key == key and entry.modified > young and entry.size == size for entry in store.list(key)):
        store.upload(path, key)
    return digest


def get_blob(store: Store, digest: str, path: Path) -> None:
    """Download a blob to `path`; the file appears only after its digest was verified.

    Raises:
        DigestMismatchError: the stored bytes have another digest.
        StoreError: `path` cannot be written.
    """
    try:
        with atomic_write(path) as draft:
            store.download(blob_key(digest), draft)
            actual = digest_of(draft)
            if actual != digest:
                raise DigestMismatchError(f"store {store.url}: {blob_key(digest)} holds bytes of SHA-256 {actual}")
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from error
