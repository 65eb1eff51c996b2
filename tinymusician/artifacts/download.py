"""Downloads one file to a device: resumed after an interruption, from any mirror, verified before it is used.

Received bytes are in `partial/DIGEST`. `DIGEST.tag` contains the address that all of them came from (nothing if they
came from several), and that source's tag for the value. A file is moved to `blobs/DIGEST` only after its size and its
SHA-256 were verified.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tinymusician.artifacts.blobs import blob_key, digest_of
from tinymusician.artifacts.release import ReleasedFile
from tinymusician.artifacts.sources import CHUNK, RangeResponse, Source
from tinymusician.errors import AccessDeniedError, DigestMismatchError, NotFoundError, StoreError, TransientStoreError

_TRIES, _MOST_TRIES = 5, 50
"""The number of requests without progress to one source before it is given up, and in total."""
_READS = 4
"""The number of requests for a small value."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_SLOWEST, _TIMEOUT_SECONDS = 1000, 30.0
"""The rate in bytes per second, over a number of seconds, below which a mirror counts as busy."""

ProgressCallback = Callable[[int], None]
"""Receives the number of new bytes; it is negative when bytes must be downloaded again."""


class MirrorMismatch(TransientStoreError):
    """Pieces of several sources do not fit together, and it is unknown whose are wrong."""


@dataclass
class BandwidthLimiter:
    """A limit in bytes per second; 0 is no limit."""

    limit: float = 0.0
    _began: float = field(default_factory=time.monotonic)
    _passed: int = 0

    def wait(self, size: int) -> None:
        """Count bytes, and sleep if they came too fast."""
        self._passed += size
        if self.limit:
            time.sleep(max(0.0, self._passed / self.limit - (time.monotonic() - self._began)))


def read_small(source: Source, key: str, most: int) -> bytes:
    """The first `most` bytes of a small value; requests to a busy source are retried.

    Raises:
        NotFoundError, AccessDeniedError, StoreError: the source has no such value, refuses access, or does not respond.
    """
    for attempt in range(_READS - 1):
        try:
            return source.read(key, most)
        except AccessDeniedError:
            raise
        except TransientStoreError as error:
            time.sleep(min(_LONGEST_WAIT, max(error.wait, _FIRST_WAIT * 2**attempt)))
    return source.read(key, most)


def download(
    sources: Sequence[Source], file: ReleasedFile, folder: Path, on_progress: ProgressCallback, pace: BandwidthLimiter
) -> Path:
    """The path of a file below `folder`, downloaded unless it exists.

    Sources are tried in turn, with pauses that double while nothing arrives. A source with other bytes is tried once
    more, and then left out.

    Raises:
        StoreError: no source has the file now; received bytes are kept.
        DigestMismatchError: the sources have another value.
    """
    place, part = folder / "blobs" / file.sha256, folder / "partial" / file.sha256
    for path in (place, part, _tag_file(part)):
        if path.is_symlink():  # nothing of ours, and it could lead anywhere
            path.unlink()
    if place.exists():
        if place.stat().st_size == file.size and digest_of(place) == file.sha256:
            return place
        place.unlink()  # damaged on this device
    for directory in (place.parent, part.parent):
        directory.mkdir(parents=True, exist_ok=True)
    left, wrong, errors = list(sources), Counter[str](), list[StoreError]()
    fruitless, turn, apart = 0, 0, False
    on_progress(_size(part))
    for _ in range(_MOST_TRIES * len(sources)):
        source, before = left[turn % len(left)], _size(part)
        try:
            digest = _continue(source, file, part, on_progress, pace, apart)
            _finish(part, digest, place, file, source.url, on_progress)
            return place
        except StoreError as error:
            errors.append(error)
            apart |= isinstance(error, MirrorMismatch)
            fruitless = 0 if _size(part) > before else fruitless + 1
            wrong[source.url] += not isinstance(error, TransientStoreError)
            turn += not (apart and _size(part) > before)  # whoever gets on alone is not interrupted
            left = [one for one in left if wrong[one.url] < 2]
            if not left or fruitless >= _TRIES * len(left):
                break
            if fruitless and fruitless % len(left) == 0:
                retry_after = error.wait if isinstance(error, TransientStoreError) else 0.0
                time.sleep(min(_LONGEST_WAIT, max(retry_after, _FIRST_WAIT * 2 ** (fruitless // len(left) - 1))))
    raise _worst(errors, file)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _continue(
    source: Source, file: ReleasedFile, part: Path, on_progress: ProgressCallback, pace: BandwidthLimiter, apart: bool
) -> str:
    """Append the missing bytes of a partial file, or start again if the source requires it; returns its SHA-256.

    A key is the digest of its value, so another mirror may continue where this one stopped, unless they are kept
    `apart`.
    """
    have, (whose, tag) = _size(part), _origin(part)
    if have > file.size or (apart and whose != source.url):
        part.unlink(missing_ok=True)
        on_progress(-have)
        have = 0
    if have == file.size and have:
        return digest_of(part)
    with source.open(blob_key(file.sha256), have, tag if whose == source.url else "") as answer:
        alone = not answer.start or whose == source.url
        _tag_file(part).write_text(f"{source.url if alone else ''}\n{answer.tag if alone else ''}")
        on_progress(-have if not answer.start else 0)
        with part.open("r+b" if answer.start else "w+b") as out:
            return _append(answer, out, file, on_progress, pace, source.url)


def _append(
    answer: RangeResponse,
    out: BinaryIO,
    file: ReleasedFile,
    on_progress: ProgressCallback,
    pace: BandwidthLimiter,
    url: str,
) -> str:
    seen = hashlib.sha256()
    while answer.start and (block := out.read(CHUNK)):
        seen.update(block)
    began, got, got_before = time.monotonic(), 0, 0
    for chunk in answer.chunks:
        got += len(chunk)
        if answer.start + got > file.size:
            out.truncate(0)
            on_progress(len(chunk) - answer.start - got)
            raise DigestMismatchError(f"{url}: sends more than the {file.size} bytes of {file.path}")
        out.write(chunk)
        seen.update(chunk)
        on_progress(len(chunk))
        pace.wait(len(chunk))
        spent = time.monotonic() - began
        if spent > _TIMEOUT_SECONDS and not 0 < pace.limit < 2 * _SLOWEST:
            if got - got_before < _SLOWEST * spent:
                raise TransientStoreError(f"{url}: sends {(got - got_before) / spent:.0f} bytes a second")
            began, got_before = time.monotonic(), got
    if answer.start + got < file.size:
        raise TransientStoreError(f"{url}: ended after {answer.start + got} of {file.size} bytes of {file.path}")
    return seen.hexdigest()


def _finish(part: Path, digest: str, place: Path, file: ReleasedFile, url: str, on_progress: ProgressCallback) -> None:
    """Move a complete file to its path if its digest is right, and delete it otherwise."""
    if digest != file.sha256:
        whose, _ = _origin(part)
        on_progress(-part.stat().st_size)
        part.unlink()
        if whose != url:
            raise MirrorMismatch(f"{file.path}: what several mirrors have does not fit together")
        raise DigestMismatchError(
            f"{url}: {file.path} has SHA-256 {digest[:12]}…; the release says {file.sha256[:12]}…"
        )
    with part.open("rb") as whole:
        os.fsync(whole.fileno())
    part.chmod(0o444)
    os.replace(part, place)
    _tag_file(part).unlink(missing_ok=True)


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _origin(part: Path) -> tuple[str, str]:
    """The source of a partial file, and the source's tag."""
    path = _tag_file(part)
    whose, _, tag = path.read_text().partition("\n") if path.exists() and _size(part) else ("", "", "")
    return whose, tag


def _worst(errors: list[StoreError], file: ReleasedFile) -> StoreError:
    """The error to report at the end: wrong bytes before no response, and no response before a missing file."""
    for kind in (DigestMismatchError, TransientStoreError, NotFoundError, StoreError):
        for error in reversed(errors):
            if isinstance(error, kind):
                return error
    return StoreError(f"{file.path}: no source was asked")
