"""Sources from which a device reads the keys of a store: HTTPS URLs, folders, S3. Several sources are mirrors.

Over HTTP, a key has the URL BASE/KEY, or the presigned URL in a list. Redirects are followed but never cached: every
request starts at BASE, or reads the list again. Proxies come from the environment.
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
_MAX_LIST_BYTES = 4 << 20
_READ_SECONDS = 30.0
"""The time limit for a small value."""
_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")


@dataclass(frozen=True)
class RangeResponse:
    """Bytes of a value from `start` on; `tag` is the value's ETag, empty if the source has none."""

    start: int
    tag: str
    chunks: Iterator[bytes]


class Source(Protocol):
    """Reads the keys of a store from one place."""

    url: str

    def read(self, key: str, max_bytes: int) -> bytes:
        """The first `max_bytes` bytes of a small value."""

    def open(self, key: str, start: int, tag: str) -> contextlib.AbstractContextManager[RangeResponse]:
        """A value from `start` on if it still has this tag, otherwise from its beginning.

        Raises:
            NotFoundError: there is no such value.
            TransientStoreError: the source is busy or unreachable.
            StoreError: the source refuses.
        """


class FolderSource:
    """A store in a folder."""

    def __init__(self, root: Path) -> None:
        self._root, self.url = root, root.absolute().as_uri()

    def read(self, key: str, max_bytes: int) -> bytes:
        with self.open(key, 0, "") as response:
            return _read_first(response.chunks, max_bytes)

    @contextlib.contextmanager
    def open(self, key: str, start: int, tag: str) -> Iterator[RangeResponse]:
        try:
            file = (self._root / check_key(key)).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            if not self._root.is_dir():
                raise StoreError(f"{self.url}: no such folder") from None
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
    """A store in S3, through boto3 with the usual AWS_* variables."""

    def __init__(self, url: str) -> None:
        from tinymusician.artifacts.s3 import S3Store

        parts = urlparse(url)
        self._store, self.url = S3Store(parts.netloc, parts.path.strip("/")), url

    def read(self, key: str, max_bytes: int) -> bytes:
        with self.open(key, 0, "") as response:
            return _read_first(response.chunks, max_bytes)

    @contextlib.contextmanager
    def open(self, key: str, start: int, tag: str) -> Iterator[RangeResponse]:
        with self._store.stream(key, start, tag) as response:
            yield RangeResponse(*response)


class HttpSource:
    """A store behind a base URL."""

    def __init__(self, url: str) -> None:
        import requests

        self._base, self.url = url.rstrip("/"), without_secrets(url).rstrip("/")
        self._session = requests.Session()
        self._session.headers["Accept-Encoding"] = "identity"

    def read(self, key: str, max_bytes: int) -> bytes:
        with self.open(key, 0, "") as response:
            return _read_first(response.chunks, max_bytes)

    @contextlib.contextmanager
    def open(self, key: str, start: int, tag: str) -> Iterator[RangeResponse]:
        ranged = {"Range": f"bytes={start}-", **({"If-Range": tag} if tag else {})} if start else {}
        with self._translate_errors():
            url = self._url_of(check_key(key))
            response = self._get(url, ranged)
            if interpret_status(response.status_code, response.headers.get("Content-Range"), start) == "without range":
                response.close()
                response, start = self._get(url, {}), 0
        with contextlib.closing(response):
            offset = self._offset(response, key, start)
            etag = response.headers.get("ETag", "")
            yield RangeResponse(offset, "" if etag.startswith("W/") else etag, self._chunks(response))

    def _chunks(self, response: Any) -> Iterator[bytes]:
        """Bytes as soon as they arrive, however few."""
        with self._translate_errors():
            while chunk := response.raw.read1(CHUNK, decode_content=False):
                yield chunk

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        import requests
        import urllib3

        try:
            yield
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise TransientStoreError(f"{self.url}: {_reason(error)}") from None

    def _url_of(self, key: str) -> str:
        return f"{self._base}/{quote(key)}"

    def _get(self, url: str, headers: dict[str, str]) -> Any:
        """The response behind all redirects; none leads from HTTPS to HTTP."""
        for _ in range(_REDIRECTS + 1):
            try:
                response = self._session.get(url, headers=headers, stream=True, timeout=_TIMEOUT, allow_redirects=False)
            except ValueError:  # requests reads where a redirect leads, even if it is not followed
                raise StoreError(f"{self.url}: redirects to what is not a URL, or is none") from None
            if not response.is_redirect:
                return response
            response.close()
            url = _redirect_target(self.url, url, response.headers["Location"])
        raise TransientStoreError(f"{self.url}: more than {_REDIRECTS} redirects")

    def _offset(self, response: Any, key: str, start: int) -> int:
        """The offset in the value at which a response starts.

        Raises:
            NotFoundError: the source has no such value.
            TransientStoreError, AccessDeniedError: the source is busy, or denies access.
            StoreError: the source refuses.
        """
        status = response.status_code
        action = interpret_status(status, response.headers.get("Content-Range"), start)
        if action in ("append", "whole"):
            return start if action == "append" else 0
        if action == "missing":
            raise NotFoundError(f"{self.url}: nothing under {key!r}")
        if action == "refused":
            raise StoreError(f"{self.url}: status {status} for {key!r}")
        wait = response.headers.get("Retry-After", "")
        kind = AccessDeniedError if status == 403 else TransientStoreError
        raise kind(f"{self.url}: status {status} for {key!r}", float(wait) if wait.isdecimal() else 0.0)


class _PresignedSource(HttpSource):
    """A store behind a list of presigned URLs, `{"addresses": {KEY: URL, …}}`, which is read for every key."""

    def _url_of(self, key: str) -> str:
        try:
            url = json.loads(self._list())["addresses"].get(key)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise StoreError(f"{self.url}: is not a list of URLs, as `tmctl artifacts presign` prints it") from None
        if not isinstance(url, str):
            raise NotFoundError(f"{self.url}: has no URL for {key!r}")
        return _redirect_target(self.url, self._base, url)

    def _list(self) -> bytes:
        parts = urlparse(self._base)
        if parts.scheme == "file":
            with FolderSource(Path(unquote(parts.path)).parent).open(Path(unquote(parts.path)).name, 0, "") as file:
                return _read_first(file.chunks, _MAX_LIST_BYTES)
        with contextlib.closing(self._get(self._base, {})) as response:
            self._offset(response, parts.path, 0)
            return _read_first(self._chunks(response), _MAX_LIST_BYTES)


_REASONS = {
    "SSLError": "its certificate is not accepted, or it does not speak TLS",
    "ProxyError": "the proxy does not respond; check HTTPS_PROXY and HTTP_PROXY",
    "NameResolutionError": "its name cannot be resolved",
    "NewConnectionError": "no server responds there",
    "Timeout": "no answer in time",
    "ConnectTimeoutError": "no answer in time",
    "ReadTimeoutError": "no answer in time",
    "InvalidURL": "is no valid address",
    "LocationParseError": "is no valid address",
}
"""The errors of requests and urllib3 by class, and what they mean; the first of a chain counts."""


def _reason(error: BaseException) -> str:
    """Why a request failed, in plain words: the errors' texts contain addresses, and presigned ones are credentials."""
    names = {kind.__name__ for one in _causes(error) for kind in type(one).__mro__}
    return next((reason for name, reason in _REASONS.items() if name in names), "the connection broke off")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those inside it: urllib3's are arguments of requests' errors, and their reasons."""
    while error is not None:
        yield error
        inner = [one for one in (getattr(error, "reason", None), *error.args) if isinstance(one, BaseException)]
        error = inner[0] if inner else None


def without_secrets(url: str) -> str:
    """An address for messages: without user, password, query and fragment."""
    return re.sub(r"://[^/?#]*@", "://", re.split(r"[?#]", url, maxsplit=1)[0])


def _redirect_target(source: str, url: str, location: str) -> str:
    """The absolute URL of a redirect from `url`, or of an entry in a list at `url`.

    Raises:
        StoreError: it is not an HTTP URL, or leaves HTTPS.
    """
    try:
        target = urljoin(url, location)
        scheme = urlparse(target).scheme
    except ValueError:
        raise StoreError(f"{source}: redirects to what is not a URL") from None
    if scheme not in ("http", "https"):
        raise StoreError(f"{source}: redirects to {scheme[:20]!r}; allowed are https://… and http://…")
    if urlparse(url).scheme == "https" and scheme != "https":
        host = urlparse(target).hostname
        raise StoreError(f"{source}: redirects from HTTPS to {scheme}://{host}, which is not encrypted")
    return target


StatusAction = Literal["append", "whole", "without range", "later", "missing", "refused"]


def interpret_status(code: int, content_range: str | None, start: int) -> StatusAction:
    """What a client that requested a value from byte `start` on does after a response with this status.

    Bytes are appended only after a 206 with exactly the requested range, up to the value's end. After another range, or
    a 416, the value is requested again without a range. A 403 may come from an expired presigned URL.
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
    """The source at a URL.

    Raises:
        StoreError: it is not https://, http://, file:///, s3://, or a list of presigned URLs (….json).
    """
    try:
        parts = urlparse(url)
        has_host = bool(parts.hostname)
    except ValueError:
        raise StoreError(f"store {without_secrets(url)!r}: is no valid address") from None
    if parts.scheme in ("http", "https", "file") and parts.path.endswith(".json"):
        return _PresignedSource(url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
        return FolderSource(Path(unquote(parts.path)))
    if parts.scheme in ("http", "https") and has_host:
        return HttpSource(url)
    if parts.scheme == "s3" and has_host and "@" not in parts.netloc:
        return _S3Source(url)
    raise StoreError(
        f"store {without_secrets(url)!r}: allowed are https://…, http://…, file:///an/absolute/folder, s3://bucket/prefix"
    )


def _read_first(chunks: Iterator[bytes], max_bytes: int) -> bytes:
    body, start = bytearray(), time.monotonic()
    for chunk in chunks:
        body += chunk
        if len(body) >= max_bytes:
            break
        if time.monotonic() - start > _READ_SECONDS:
            raise TransientStoreError(f"only {len(body)} bytes arrived in {_READ_SECONDS:g} s")
    return bytes(body[:max_bytes])
