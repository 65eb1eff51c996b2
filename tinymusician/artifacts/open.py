"""Opens a store by URL: `file:///folder` or `s3://bucket/prefix`."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.request import url2pathname

from tinymusician.artifacts.retry import RetryingStore
from tinymusician.artifacts.s3 import S3Store
from tinymusician.artifacts.store import LocalStore, Store
from tinymusician.errors import StoreError
from tinymusician.user_folders import user_folder

STORE_VARIABLE, STORE_TIMEOUT_VARIABLE = "TMCTL_STORE", "TMCTL_STORE_TIMEOUT"


def open_store(url: str | None = None) -> Store:
    """The store at `url`, by default at TMCTL_STORE, otherwise in the user's data directory.

    With TMCTL_STORE_TIMEOUT, a number of seconds, failed requests to a server are retried for so long; jobs set it.

    Raises:
        StoreError: the URL is neither `file:///folder` nor `s3://bucket/prefix`.
    """
    address = url or os.environ.get(STORE_VARIABLE) or (user_folder("data") / "store").as_uri()
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("/")  # `?` and `#` are characters of paths and keys, not of a web address
    if scheme == "file" and host in {"", "localhost"} and slash:
        root = Path(url2pathname(f"/{path}"))
        if root.exists() and not root.is_dir():
            raise StoreError(f"{STORE_VARIABLE} {address!r}: {root} is a file; a folder is needed")
        return LocalStore(root)
    if scheme == "s3" and "@" in host:
        raise StoreError(f"{STORE_VARIABLE}: s3://bucket/prefix is needed; credentials belong into AWS_ACCESS_KEY_ID")
    if scheme == "s3" and host:
        store, timeout = S3Store(host, path.strip("/")), os.environ.get(STORE_TIMEOUT_VARIABLE)
        return RetryingStore(store, _seconds(timeout)) if timeout else store
    raise StoreError(f"{STORE_VARIABLE} {address!r}: allowed are file:///an/absolute/folder and s3://bucket/prefix")


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise StoreError(f"{STORE_TIMEOUT_VARIABLE} {text!r}: a number of seconds is needed") from None
