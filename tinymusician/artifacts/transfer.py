"""Bringing one file to a device: resumed where it was cut off, from any mirror that answers, checked before it counts.

What has arrived lies in `partial/DIGEST`, and in `DIGEST.tag` the source's address and tag for the value. A file
is moved to `blobs/DIGEST` when its size and its SHA-256 are right, and never otherwise.
"""

from __future__ import annotations

import contextlib
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
from tinymusician.artifacts.sources import CHUNK, Answer, Source
from tinymusician.errors import Busy, Corrupt, NotFound, StoreError

_TRIES, _MOST_TRIES = 5, 50
"""How often a source is asked in vain before it is given up, and how often at all."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_SLOWEST, _PATIENCE = 1000, 30.0
"""Bytes a second, over so many seconds, below which a mirror counts as busy."""

Told = Callable[[int], None]
"""Hears of bytes that have arrived; fewer than none when they have to be fetched again."""


@dataclass
class Pace:
    """A limit in bytes a second; 0 is none."""

    limit: float = 0.0
    _began: float = field(default_factory=time.monotonic)
    _passed: int = 0

    def wait(self, size: int) -> None:
        """Count bytes, and sleep if they came too fast."""
        self._passed += size
        if self.limit:
            time.sleep(max(0.0, self._passed / self.limit - (time.monotonic() - self._began)))


def bring(sources: Sequence[Source], file: ReleasedFile, folder: Path, told: Told, pace: Pace) -> Path:
    """The place of a file below `folder`, brought there if it is not there yet.

    Sources are asked in turn, with pauses that double while nothing arrives; one that has other bytes is asked once
    more, and then left out.

    Raises:
        StoreError: no source has it now; what has arrived is kept.
        Corrupt: what the sources have is something else.
    """
    place, part = folder / "blobs" / file.sha256, folder / "partial" / file.sha256
    if place.exists():
        if place.stat().st_size == file.size and digest_of(place) == file.sha256:
            return place
        place.unlink()  # damaged on this device
    for directory in (place.parent, part.parent):
        directory.mkdir(parents=True, exist_ok=True)
    left, wrong, errors = list(sources), Counter[str](), list[StoreError]()
    fruitless = 0
    for number in range(_MOST_TRIES * len(sources)):
        source, before = left[number % len(left)], _size(part)
        try:
            found = _continue(source, file, part, told, pace)
            _settle(part, found, place, file, source.url, told)
            return place
        except StoreError as error:
            errors.append(error)
            fruitless = 0 if _size(part) > before else fruitless + 1
            wrong[source.url] += not isinstance(error, Busy)
            left = [one for one in left if wrong[one.url] < 2]
            if not left or fruitless >= _TRIES * len(left):
                break
            if fruitless and fruitless % len(left) == 0:
                asked = error.wait if isinstance(error, Busy) else 0.0
                time.sleep(min(_LONGEST_WAIT, max(asked, _FIRST_WAIT * 2 ** (fruitless // len(left) - 1))))
    raise _worst(errors, file)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _continue(source: Source, file: ReleasedFile, part: Path, told: Told, pace: Pace) -> str:
    """Append what is missing of a partial file, or begin again where the source wants it so; returns its SHA-256."""
    tag_file = part.with_name(f"{part.name}.tag")
    have = _size(part)
    if have > file.size:
        part.unlink()
        told(-have)
        have = 0
    if have == file.size and have:
        return digest_of(part)
    whose, _, tag = tag_file.read_text().partition("\n") if have and tag_file.exists() else ("", "", "")
    # A key is the digest of its value, so another mirror may go on where this one stopped: without its tag.
    with source.open(blob_key(file.sha256), have, tag if whose == source.url else "") as answer:
        tag_file.write_text(f"{source.url}\n{answer.tag}")
        told(-have if not answer.start else 0)
        with part.open("r+b" if answer.start else "w+b") as out:
            return _append(answer, out, file, told, pace, source.url)


def _append(answer: Answer, out: BinaryIO, file: ReleasedFile, told: Told, pace: Pace, url: str) -> str:
    began, got = time.monotonic(), 0
    seen = hashlib.sha256()
    while answer.start and (block := out.read(CHUNK)):
        seen.update(block)
    for chunk in answer.chunks:
        got += len(chunk)
        if answer.start + got > file.size:
            out.truncate(0)
            told(len(chunk) - answer.start - got)
            raise Corrupt(f"{url}: sends more than the {file.size} bytes of {file.path}")
        out.write(chunk)
        seen.update(chunk)
        told(len(chunk))
        pace.wait(len(chunk))
        spent = time.monotonic() - began
        if not pace.limit and spent > _PATIENCE and got < _SLOWEST * spent:
            raise Busy(f"{url}: sends {got / spent:.0f} bytes a second")
    if answer.start + got < file.size:
        raise Busy(f"{url}: ended after {answer.start + got} of {file.size} bytes of {file.path}")
    out.flush()
    os.fsync(out.fileno())
    return seen.hexdigest()


def _settle(part: Path, found: str, place: Path, file: ReleasedFile, url: str, told: Told) -> None:
    """Move a whole file to its place if its digest is right, and throw it away otherwise."""
    if found != file.sha256:
        told(-part.stat().st_size)
        part.unlink()
        raise Corrupt(f"{url}: {file.path} has SHA-256 {found[:12]}…; the release says {file.sha256[:12]}…")
    part.chmod(0o444)
    os.replace(part, place)
    with contextlib.suppress(FileNotFoundError):
        part.with_name(f"{part.name}.tag").unlink()


def _worst(errors: list[StoreError], file: ReleasedFile) -> StoreError:
    """What is said at the end: other bytes are worse than no answer, and no answer worse than no such file."""
    for kind in (Corrupt, Busy, NotFound, StoreError):
        for error in reversed(errors):
            if isinstance(error, kind):
                return error
    return StoreError(f"{file.path}: no source was asked")
