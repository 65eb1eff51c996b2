"""Downloads one file to a device: resumed after an interruption, from any mirror, verified before it is used.

Received bytes are in `partial/DIGEST`. `DIGEST.tag` contains the address that all of them came from (nothing if they
came from several), and that source's tag for the value. A file is moved to `blobs/DIGEST` only after its size and its
SHA-256 were verified.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tinymusician.artifacts.background_flush import BackgroundFlush
from tinymusician.artifacts.blobs import blob_key, digest_of
from tinymusician.artifacts.release import ReleasedFile
from tinymusician.artifacts.sources import CHUNK, RangeResponse, Source
from tinymusician.errors import AccessDeniedError, DigestMismatchError, NotFoundError, StoreError, TransientStoreError

_FRUITLESS_TRIES, _MAX_TRIES = 5, 50
"""The number of requests without progress to one source before it is given up, and in total."""
_SMALL_TRIES = 4
"""The number of requests for a small value."""
_FIRST_WAIT, _MAX_WAIT = 0.5, 30.0
"""Pauses between requests, in seconds; they double from the first to the maximum."""
_MIN_RATE, _RATE_SECONDS = 1000, 30.0
"""A mirror that sends fewer bytes per second than this, over so many seconds, counts as busy."""
_SLOW_SECONDS = 600.0
"""A mirror that would need longer for the rest of a file is left, while another one has not been tried."""

ProgressCallback = Callable[[int], None]
"""Receives the number of new bytes; it is negative when bytes must be downloaded again."""


class MirrorMismatch(TransientStoreError):
    """The bytes of several sources have the wrong digest together; it is unknown which source is wrong."""


class SlowMirror(TransientStoreError):
    """A mirror sends `rate` bytes a second; others may be faster."""

    def __init__(self, message: str, rate: float) -> None:
        super().__init__(message)
        self.rate = rate


@dataclass
class BandwidthLimiter:
    """A limit in bytes per second; 0 is no limit."""

    limit: float = 0.0
    _start: float = field(default_factory=time.monotonic)
    _received: int = 0

    def wait(self, size: int) -> None:
        """Count received bytes, and sleep if they arrived too fast."""
        self._received += size
        if self.limit:
            time.sleep(max(0.0, self._received / self.limit - (time.monotonic() - self._start)))


def read_small(source: Source, key: str, max_bytes: int) -> bytes:
    """The first `max_bytes` bytes of a small value; requests to a busy source are retried.

    Raises:
        NotFoundError, AccessDeniedError, StoreError: the source has no such value, refuses access, or does not respond.
    """
    for attempt in range(_SMALL_TRIES - 1):
        try:
            return source.read(key, max_bytes)
        except AccessDeniedError:
            raise
        except TransientStoreError as error:
            time.sleep(min(_MAX_WAIT, max(error.retry_after, _FIRST_WAIT * 2**attempt)))
    return source.read(key, max_bytes)


def download(
    sources: list[Source],
    file: ReleasedFile,
    folder: Path,
    on_progress: ProgressCallback,
    limit: BandwidthLimiter,
    later_bytes: int = 0,
) -> Path:
    """The path of a file below `folder`, downloaded unless it exists.

    Sources are tried in turn, with pauses that double while nothing arrives. A source with wrong bytes is tried once
    more, then excluded. A source is slow if the rest, and the `later_bytes` of other files, would take too long; if all
    are slow, the fastest one continues. The one that continued after a slow one is then the first of `sources`.

    Raises:
        StoreError: no source has the file now; received bytes stay on disk.
        DigestMismatchError: the sources have another value.
    """
    target, partial = folder / "blobs" / file.sha256, folder / "partial" / file.sha256
    if _is_prepared(target, partial, file):
        return target
    mirrors, errors, failures = _Mirrors(sources), list[StoreError](), 0
    on_progress(_size(partial))
    for _ in range(_MAX_TRIES * len(sources)):
        source, before = mirrors.current, _size(partial)
        try:
            pace = _Pace(source.url, limit, mirrors.slow_seconds, later_bytes)
            digest = _continue(source, file, partial, on_progress, mirrors.one_source_only, pace)
            _finish(partial, digest, target, file, source.url, on_progress)
            if mirrors.has_slow:
                sources.sort(key=lambda one: one is not source)
            return target
        except StoreError as error:
            errors.append(error)
            failures = 0 if (is_further := _size(partial) > before) else failures + 1
            mirrors.leave(source, error, is_further)
            if failures >= _FRUITLESS_TRIES * len(mirrors.remaining):
                break
            _pause(error, failures, len(mirrors.remaining))
    raise _worst(errors, file)


def _pause(error: StoreError, failures: int, count: int) -> None:
    """Wait when all of `count` sources have failed again."""
    if failures and failures % count == 0:
        retry_after = error.retry_after if isinstance(error, TransientStoreError) else 0.0
        time.sleep(min(_MAX_WAIT, max(retry_after, _FIRST_WAIT * 2 ** (failures // count - 1))))


class _Mirrors:
    """The sources of a file that are left, and which is next.

    With `one_source_only`, bytes of several together were wrong, and each must send all of them.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.remaining, self.one_source_only = list(sources), False
        self._index, self._mismatches, self._rates = 0, Counter[str](), dict[str, float]()

    @property
    def current(self) -> Source:
        """The source to ask now."""
        return self.remaining[self._index % len(self.remaining)]

    @property
    def has_slow(self) -> bool:
        """Whether a source was left because it is slow."""
        return any(self._rates.values())

    @property
    def slow_seconds(self) -> float:
        """How long the rest may take; infinite if no source is left that has not been tried."""
        is_last = len(self.remaining) == 1 or all(one.url in self._rates for one in self.remaining)
        return math.inf if is_last or self.one_source_only else _SLOW_SECONDS

    def leave(self, source: Source, error: StoreError, is_further: bool) -> None:
        """Turn to another source after an error, unless this one alone must go on and has got further."""
        self.one_source_only |= isinstance(error, MirrorMismatch)
        self._mismatches[source.url] += not isinstance(error, TransientStoreError)
        self._index += not (self.one_source_only and is_further)
        self.remaining = [one for one in self.remaining if self._mismatches[one.url] < 2]
        self._rates[source.url] = error.rate if isinstance(error, SlowMirror) else 0.0
        if isinstance(error, SlowMirror) and all(one.url in self._rates for one in self.remaining):
            self.remaining.sort(key=lambda one: -self._rates[one.url])  # the fastest one goes on
            self._index = 0


def _is_prepared(target: Path, partial: Path, file: ReleasedFile) -> bool:
    """Create the folders of a download, or say that the file is complete.

    Links in them were not made by this client, and are removed; so is a damaged file.
    """
    for path in (target, partial, _tag_file(partial)):
        if path.is_symlink():
            path.unlink()
    for directory in (target.parent, partial.parent):
        directory.mkdir(parents=True, exist_ok=True)
    if _is_complete(target, file):
        return True
    target.unlink(missing_ok=True)
    return False


def _is_complete(path: Path, file: ReleasedFile) -> bool:
    return path.exists() and path.stat().st_size == file.size and digest_of(path) == file.sha256


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _continue(
    source: Source,
    file: ReleasedFile,
    partial: Path,
    on_progress: ProgressCallback,
    one_source_only: bool,
    pace: _Pace,
) -> str:
    """Append the missing bytes of a partial file, or start again if the source requires it; returns its SHA-256.

    A key is the digest of its value, so another mirror may continue where this one stopped, except where only one may
    send all.
    """
    received, (origin, tag) = _size(partial), _origin(partial)
    if received > file.size or (one_source_only and origin != source.url):
        partial.unlink(missing_ok=True)
        on_progress(-received)
        received = 0
    if received == file.size and received:
        return digest_of(partial)
    with source.open(blob_key(file.sha256), received, tag if origin == source.url else "") as response:
        from_one_source = not response.start or origin == source.url
        _tag_file(partial).write_text(
            f"{source.url if from_one_source else ''}\n{response.tag if from_one_source else ''}"
        )
        on_progress(-received if not response.start else 0)
        with partial.open("r+b" if response.start else "w+b") as out, BackgroundFlush(out) as flush:
            return _append(response, out, file, on_progress, pace, flush)


class _Pace:
    """Measures a source's bytes per second over intervals, and gives up one that is too slow.

    A limit that the user has set is not the source's speed.
    """

    def __init__(self, url: str, limiter: BandwidthLimiter, slow_seconds: float, later_bytes: int) -> None:
        self.url, self._limiter, self._slow_seconds, self._later_bytes = url, limiter, slow_seconds, later_bytes
        self._began, self._received = 0.0, 0

    def start(self) -> None:
        """Begin to measure, when the source begins to send."""
        self._began = time.monotonic()

    def check(self, size: int, left: int) -> None:
        """Count `size` new bytes, after which `left` of the file are missing.

        Raises:
            TransientStoreError: fewer arrive than any source must send.
            SlowMirror: the rest would take longer than the download allows.
        """
        self._received += size
        self._limiter.wait(size)
        seconds, limit = time.monotonic() - self._began, self._limiter.limit
        if seconds <= _RATE_SECONDS:
            return
        rate = self._received / seconds
        self._began, self._received = time.monotonic(), 0
        if rate < _MIN_RATE and not 0 < limit < 2 * _MIN_RATE:
            raise TransientStoreError(f"{self.url}: sends {rate:.0f} bytes a second")
        if left + self._later_bytes > rate * self._slow_seconds and not 0 < limit < 2 * rate:
            raise SlowMirror(f"{self.url}: sends {rate:.0f} bytes a second; another mirror is tried", rate)


def _append(
    response: RangeResponse,
    out: BinaryIO,
    file: ReleasedFile,
    on_progress: ProgressCallback,
    pace: _Pace,
    flush: BackgroundFlush,
) -> str:
    url, sha256 = pace.url, hashlib.sha256()
    while response.start and (block := out.read(CHUNK)):
        sha256.update(block)
    received = 0
    pace.start()
    for chunk in response.chunks:
        received += len(chunk)
        if response.start + received > file.size:
            out.truncate(0)
            on_progress(len(chunk) - response.start - received)
            raise DigestMismatchError(f"{url}: sends more than the {file.size} bytes of {file.path}")
        out.write(chunk)
        flush.add(len(chunk))
        sha256.update(chunk)
        on_progress(len(chunk))
        pace.check(len(chunk), file.size - response.start - received)
    if response.start + received < file.size:
        raise TransientStoreError(f"{url}: ended after {response.start + received} of {file.size} bytes of {file.path}")
    return sha256.hexdigest()


def _finish(
    partial: Path, digest: str, target: Path, file: ReleasedFile, url: str, on_progress: ProgressCallback
) -> None:
    """Move a complete file to its path if its digest is right, and delete it otherwise."""
    if digest != file.sha256:
        origin, _ = _origin(partial)
        on_progress(-partial.stat().st_size)
        partial.unlink()
        if origin != url:
            raise MirrorMismatch(f"{file.path}: the mirrors' bytes have the wrong digest together")
        raise DigestMismatchError(
            f"{url}: {file.path} has SHA-256 {digest[:12]}…; the release says {file.sha256[:12]}…"
        )
    with partial.open("rb") as whole:
        os.fsync(whole.fileno())
    partial.chmod(partial.stat().st_mode & 0o444)  # as the umask allows
    os.replace(partial, target)
    _tag_file(partial).unlink(missing_ok=True)


def _tag_file(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.tag")


def _origin(partial: Path) -> tuple[str, str]:
    """The source of a partial file, and the source's tag."""
    path = _tag_file(partial)
    origin, _, tag = path.read_text().partition("\n") if path.exists() and _size(partial) else ("", "", "")
    return origin, tag


def _worst(errors: list[StoreError], file: ReleasedFile) -> StoreError:
    """The error to report at the end: wrong bytes before no response, and no response before a missing file."""
    for kind in (DigestMismatchError, TransientStoreError, NotFoundError, StoreError):
        for error in reversed(errors):
            if isinstance(error, kind):
                return error
    return StoreError(f"{file.path}: there is no source")
