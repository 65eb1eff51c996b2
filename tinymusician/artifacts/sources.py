"""Where a device gets keys of a store from: HTTPS addresses, a folder, or S3. Several of them are mirrors.

Over HTTP a key lies at ADDRESS/KEY, or where a list of presigned addresses says. An address may answer with a redirect,
which is never kept: every request begins at ADDRESS, or reads the list again. Proxies are taken from the environment.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol
from urllib.parse import quote, unquote, urljoin, urlparse

from tinymusician.artifacts.store import check_key
from tinymusician.errors import AccessDeniedError, NotFoundError, StoreError, TransientStoreError

CHUNK = 1 << 18
_TIMEOUT = (10, 30)
_REDIRECTS = 5
_LONGEST_LIST = 4 << 20
_TIMEOUT_SECONDS = 30.0
"""Seconds for a small value."""
_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")


@dataclass(frozen=True)
class RangeResponse:
    """Bytes of a value from `start` on; `tag` tells this value from another under the same key, if the source can."""

    start: int
    tag: str
    chunks: Iterator[bytes]


class Source(Protocol):
    """One place that has a store's keys."""

    url: str

    def read(self, key: str, most: int) -> bytes:
        """The first `most` bytes of a small value."""

    def open(self, key: str, start: int, tag: str) -> contextlib.AbstractContextManager[RangeResponse]:
        """A value from `start` on if it still has this tag, and else from its beginning.

        Raises:
            NotFound: there is none.
            Busy: not now.
        """


class FolderSource:
    """A store in a folder."""

    def __init__(self, root: Path) -> None:
        self._root, self.url = root, root.absolute().as_uri()

    def read(self, key: str, most: int) -> bytes:
        with self.open(key, 0, "") as answer:
            return _first(answer.chunks, most)

    @contextlib.contextmanager
    def open(self, key: str, start: int, tag: str) -> Iterator[RangeResponse]:
        try:
            file = (self._root / check_key(key)).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise NotFoundError(f"{self.url}: nothing under {key!r}") from None
        except OSError as error:
            raise StoreError(f"{self.url}: cannot read {key!r}: {error.strerror or error}") from None
        with file:
            yield RangeResponse(start, "", self._chunks(file, key, start))

    def _chunks(self, file: BinaryIO, key: str, start: int) -> Iterator[bytes]:
        try:
            file.seek(start)
            while chunk := file.read(CHUNK):
                yield chunk
        except OSError as error:
            raise TransientStoreError(f"{self.url}: cannot read {key!r}: {error.strerror or error}") from None


class _S3Source:
    """A store in S3, by boto3 and the usual AWS_* variables."""

    def __init__(self, url: str) -> None:
        from tinymusician.artifacts.s3 import S3Store

        parts = urlparse(url)
        self._store, self.url = S3Store(parts.netloc, parts.path.strip("/")), url

    def read(self, key: str, most: int) -> bytes:
        with self.open(key, 0, "") as answer:
            return _first(answer.chunks, most)

    @contextlib.contextmanager
    def open(self, key: str, start: int, tag: str) -> Iterator[RangeResponse]:
        yield RangeResponse(*self._store.stream(key, start, tag))


class HttpSource:
    """A store behind an address."""

    def __init__(self, url: str) -> None:
        import requests

        self.url = url.rstrip("/")
        self._session = requests.Session()
        self._session.headers["Accept-Encoding"] = "identity"

    def read(self, key: str, most: int) -> bytes:
        with self.open(key, 0, "") as answer:
            return _first(answer.chunks, most)

    @contextlib.contextmanager
    def open(self, key: str, start: int, tag: str) -> Iterator[RangeResponse]:
        ranged = {"Range": f"bytes={start}-", **({"If-Range": tag} if tag else {})} if start else {}
        with self._speaking():
            address = self._address(check_key(key))
            answer = self._get(address, ranged)
            if meaning(answer.status_code, answer.headers.get("Content-Range"), start) == "without range":
                answer.close()
                answer, start = self._get(address, {}), 0
        with contextlib.closing(answer):
            place = self._place(answer, key, start)
            etag = answer.headers.get("ETag", "")
            yield RangeResponse(place, "" if etag.startswith("W/") else etag, self._chunks(answer))

    def _chunks(self, answer: Any) -> Iterator[bytes]:
        """Bytes as soon as they arrive, however few."""
        with self._speaking():
            while chunk := answer.raw.read1(CHUNK, decode_content=False):
                yield chunk

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        import requests
        import urllib3

        try:
            yield
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise TransientStoreError(f"{self.url}: {' '.join(str(error).split())[:200]}") from None

    def _address(self, key: str) -> str:
        """Where a key lies."""
        return f"{self.url}/{quote(key)}"

    def _get(self, address: str, headers: dict[str, str]) -> Any:
        """The answer behind all redirects; none leads from HTTPS to HTTP."""
        for _ in range(_REDIRECTS + 1):
            answer = self._session.get(address, headers=headers, stream=True, timeout=_TIMEOUT, allow_redirects=False)
            if not answer.is_redirect:
                return answer
            answer.close()
            address = _led(self.url, address, answer.headers["Location"])
        raise TransientStoreError(f"{self.url}: more than {_REDIRECTS} redirects")

    def _place(self, answer: Any, key: str, start: int) -> int:
        """Where in the value an answer begins.

        Raises:
            NotFound, Busy, StoreError: it has no value, or not now, or not for this client.
        """
        said = meaning(answer.status_code, answer.headers.get("Content-Range"), start)
        if said in ("append", "whole"):
            return start if said == "append" else 0
        if said == "missing":
            raise NotFoundError(f"{self.url}: nothing under {key!r}")
        if said == "refused":
            raise StoreError(f"{self.url}: answers {answer.status_code} for {key!r}")
        wait, kind = (
            answer.headers.get("Retry-After", ""),
            AccessDeniedError if answer.status_code == 403 else TransientStoreError,
        )
        raise kind(f"{self.url}: answers {answer.status_code} for {key!r}", float(wait) if wait.isdecimal() else 0.0)


class _PresignedSource(HttpSource):
    """A store behind a list of presigned addresses, `{"addresses": {KEY: ADDRESS, …}}`, which is read for every key."""

    def _address(self, key: str) -> str:
        try:
            url = json.loads(self._list())["addresses"].get(key)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise StoreError(f"{self.url}: is no list of addresses, as `tmctl artifacts presign` makes them") from None
        if not isinstance(url, str):
            raise NotFoundError(f"{self.url}: lists nothing for {key!r}")
        return _led(self.url, self.url, url)

    def _list(self) -> bytes:
        parts = urlparse(self.url)
        if parts.scheme == "file":
            with FolderSource(Path(unquote(parts.path)).parent).open(Path(unquote(parts.path)).name, 0, "") as answer:
                return _first(answer.chunks, _LONGEST_LIST)
        with contextlib.closing(self._get(self.url, {})) as answer:
            self._place(answer, parts.path, 0)
            return _first(self._chunks(answer), _LONGEST_LIST)


def _led(url: str, before: str, location: str) -> str:
    """The address that a source leads to from another one.

    Raises:
        StoreError: it is none, or leaves HTTPS.
    """
    try:
        after = urljoin(before, location)
        scheme = urlparse(after).scheme
    except ValueError:
        raise StoreError(f"{url}: leads to {location[:60]!r}, which is no address") from None
    if scheme not in ("http", "https"):
        raise StoreError(f"{url}: leads to {after[:60]!r}; allowed are https://… and http://…")
    if urlparse(before).scheme == "https" and scheme != "https":
        raise StoreError(f"{url}: leads from HTTPS to {after[:60]!r}, which nobody protects")
    return after


Meaning = Literal["append", "whole", "without range", "later", "missing", "refused"]


def meaning(code: int, content_range: str | None, start: int) -> Meaning:
    """What an answer's status means for a client that asked for a value from byte `start` on.

    Bytes are appended only for 206 with exactly the range that was asked for, to the value's end. A range that is
    refused, or another one, is asked for again as a whole. 403 may come from a presigned address that is too old.
    """
    if code == 200:
        return "whole"
    if code == 206 and start:
        match = _RANGE.fullmatch(content_range or "")
        exact = match is not None and int(match[1]) == start and int(match[2]) + 1 == int(match[3])
        return "append" if exact else "without range"
    if code == 416 and start:
        return "without range"
    if code in (404, 410):
        return "missing"
    return "later" if code in (206, 403, 408, 416, 425, 429) or code >= 500 else "refused"


def open_source(url: str) -> Source:
    """The source at an address.

    Raises:
        StoreError: it is none of https://, http://, file:///, s3://, nor a list of presigned addresses (…json).
    """
    parts = urlparse(url)
    if parts.scheme in ("http", "https", "file") and parts.path.endswith(".json"):
        return _PresignedSource(url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
        return FolderSource(Path(unquote(parts.path)))
    if parts.scheme in ("http", "https") and parts.netloc:
        return HttpSource(url)
    if parts.scheme == "s3" and parts.netloc:
        return _S3Source(url)
    raise StoreError(f"store {url!r}: allowed are https://…, http://…, file:///an/absolute/folder, s3://bucket/prefix")


def _first(chunks: Iterator[bytes], most: int) -> bytes:
    body, began = bytearray(), time.monotonic()
    for chunk in chunks:
        body += chunk
        if len(body) >= most:
            break
        if time.monotonic() - began > _TIMEOUT_SECONDS:
            raise TransientStoreError(f"sends {len(body)} bytes in {_TIMEOUT_SECONDS:g} s")
    return bytes(body[:most])
