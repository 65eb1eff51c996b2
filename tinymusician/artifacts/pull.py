"""The reference client: what a device does to have the newest release of NAME@ALIAS. docs/protocol.md says it in words.

1. Follow the root documents from the one that the device was given; know the release keys.
2. Read the release; check signature, name, date, and that its version is not below the installed one.
3. Check the free space; bring the files that are not there, each under its digest.
4. Lay the version out beside the old one, and replace the record in one step. The old one stays until the next.

Whatever fails, the installed version stays, and stays in use.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tinymusician.artifacts.envelope import LARGEST
from tinymusician.artifacts.installation import Installation, Record, Version
from tinymusician.artifacts.release import Release, check_fresh, latest_key, read_release, split_reference
from tinymusician.artifacts.runs import now
from tinymusician.artifacts.sources import Source
from tinymusician.artifacts.transfer import Pace, bring
from tinymusician.artifacts.trust import Root, follow, root_key
from tinymusician.errors import NotFound, Refused, StoreError

RESERVE = 16 << 20
"""Bytes of the disk that stay free."""

Told = Callable[[str, int, int], None]
"""Hears the file that is on its way, and how many bytes of how many are there."""


@dataclass(frozen=True)
class Offer:
    """What the sources have: the release to install, the root that it was checked by, and what to bring for it."""

    version: Version
    root: Root
    missing: int
    is_new: bool


class Client:
    """Pulls one release into one folder."""

    def __init__(
        self,
        reference: str,
        folder: Path,
        sources: Sequence[Source],
        pinned: str | None = None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        """`pinned` is the public root key that came with the app; a folder that was pulled to before knows it.

        Raises:
            Refused: there is no root key, or the folder knows another one.
            StoreError: the reference has another form.
        """
        self.reference, self._sources, self._clock = reference, sources, clock
        self.installation = Installation(folder)
        self._name, self._alias = split_reference(reference)
        record = self.installation.record()
        if record is not None and pinned not in (None, record.pinned):
            raise Refused(f"{folder}: was set up with another root key, {record.pinned[:12]}…")
        if record is None and pinned is None:
            raise Refused(f"{folder}: knows no root key yet; give the publisher's with --root-key")
        self._pinned = record.pinned if record else str(pinned)

    def check(self) -> Offer:
        """What there is, without loading it.

        Raises:
            Refused: no source has a release that can be trusted and is not older than the installed one.
            StoreError: no source answers.
        """
        return self._offer(self.installation.record())

    def pull(self, told: Told = lambda path, done, size: None, pace: Pace | None = None) -> Version:
        """Install what there is; returns the version in use.

        Raises:
            StoreError: it cannot be had, trusted or written; what was installed stays.
        """
        try:
            with self.installation.locked():
                return self._pull(told, pace or Pace())
        except OSError as error:
            raise StoreError(f"{error.filename or self.installation.folder}: {error.strerror or error}") from error

    def _pull(self, told: Told, pace: Pace) -> Version:
        record = self.installation.record()
        offer = self._offer(record)
        release = offer.version.release
        self._check_space(offer.missing)
        done = 0

        def arrived(path: str) -> Callable[[int], None]:
            def count(size: int) -> None:
                nonlocal done
                done += size
                told(path, done, offer.missing)

            return count

        if offer.is_new or not self.installation.is_whole(offer.version):
            for file in release.files:
                bring(self._sources, file, self.installation.folder, arrived(file.path), pace)
            self.installation.lay_out(offer.version)
        previous = record.current if record and offer.is_new else record.previous if record else None
        seen = max(offer.root.created, release.created, *([record.seen] if record else []))
        known = {**(record.known if record else {}), self.reference: (release.version, offer.version.digest)}
        fresh = Record(
            pinned=self._pinned, root=offer.root, seen=seen, known=known, current=offer.version, previous=previous
        )
        if fresh != record:
            self.installation.write(fresh)
        self.installation.tidy(fresh)
        return offer.version

    def _offer(self, record: Record | None) -> Offer:
        """The newest release that any source has; those that cannot be trusted are passed over if another can."""
        found: Offer | None = None
        errors: list[StoreError] = []
        for source in self._sources:
            try:
                offer = self._from(source, record)
            except StoreError as error:
                errors.append(error)
                continue
            if found is None or offer.version.release.version > found.version.release.version:
                found = offer
        if found is None:
            raise next((error for error in errors if isinstance(error, Refused)), errors[0])
        return found

    def _from(self, source: Source, record: Record | None) -> Offer:
        moment = self._clock() if record is None else max(self._clock(), record.seen)

        def fetch(version: int) -> bytes | None:
            try:
                return source.read(root_key(version), LARGEST + 1)
            except NotFound:
                return None

        root = follow(self._pinned, record.root if record else None, fetch, moment)
        data = source.read(latest_key(self._name, self._alias), LARGEST + 1)
        release = read_release(data, self.reference, root.release_keys)
        check_fresh(release, max(moment, root.created))
        version = Version(release=release, digest=hashlib.sha256(data).hexdigest())
        if record is not None and self.reference in record.known:
            _check_not_older(version, *record.known[self.reference])
        is_new = record is None or record.current is None or record.current.digest != version.digest
        return Offer(version, root, self._missing(release), is_new)

    def _missing(self, release: Release) -> int:
        blobs = self.installation.folder / "blobs"
        return sum({f.sha256: f.size for f in release.files if not (blobs / f.sha256).exists()}.values())

    def _check_space(self, missing: int) -> None:
        partial = sum(path.stat().st_size for path in (self.installation.folder / "partial").glob("*"))
        free, needed = shutil.disk_usage(self.installation.folder).free, max(0, missing - partial) + RESERVE
        if missing and free < needed:
            raise StoreError(
                f"{self.installation.folder}: {free / 1e6:.0f} MB are free, and {needed / 1e6:.0f} MB are needed"
            )


def _check_not_older(found: Version, here: int, digest: str) -> None:
    """Raise if what a source has is older than what was installed, or something else of the same version.

    Raises:
        Refused: it is.
    """
    there = found.release.version
    if there < here:
        raise Refused(f"release {found.release.reference}: version {there} is offered, and {here} was installed")
    if there == here and found.digest != digest:
        raise Refused(
            f"release {found.release.reference}: version {there} is offered with other content than installed"
        )
