"""The reference client: how a device gets the newest release of NAME@ALIAS. docs/protocol.md specifies it.

1. Follow the root documents, over all sources, from the newest one that the device has; keep the newest in any case.
2. Read the releases; verify signature, name, date, and that the version is not below the installed one.
3. Check the free space; download the missing files, each under its digest.
4. Create the version beside the old one, and replace the state atomically. The old version stays until the next one.

After any failure, the installed version stays in use.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from tinymusician.artifacts.download import BandwidthLimiter, download, read_small
from tinymusician.artifacts.envelope import MAX_BYTES, payload_sha256, signers_of
from tinymusician.artifacts.installation import RECORD, Installation, InstalledVersion, InstallState
from tinymusician.artifacts.keys import scheme_of
from tinymusician.artifacts.reference import split_reference
from tinymusician.artifacts.release import Release, check_fresh, latest_key, read_release, release_key
from tinymusician.artifacts.run_state import now
from tinymusician.artifacts.sources import Source
from tinymusician.artifacts.timestamp import (
    Timestamp,
    check_is_confirmed,
    check_timestamp_fresh,
    read_timestamp,
    timestamp_key,
)
from tinymusician.artifacts.trust import RootMetadata, check_current, follow, read_first, root_key
from tinymusician.errors import AccessDeniedError, NotFoundError, StoreError, UntrustedError

_KEY = re.compile(r"[0-9a-f]+")
SignedDocument = Literal["root", "release", "timestamp"]
RESERVE = 16 << 20
"""Bytes of the disk that stay free."""

ProgressCallback = Callable[[str, int, int], None]
"""Receives the path of the file that is downloaded, and how many of its bytes are there."""


@dataclass(frozen=True)
class AvailableUpdate:
    """The release to install, the files to download for it, and whether it differs from the installed one."""

    version: InstalledVersion
    missing: int
    is_new: bool


class _Offer(NamedTuple):
    """What a source offers, and the timestamp that confirms it."""

    version: InstalledVersion
    timestamp: Timestamp | None


class PullClient:
    """Pulls one release into one folder."""

    def __init__(
        self,
        reference: str,
        folder: Path,
        sources: Sequence[Source],
        pinned: str | None = None,
        clock: Callable[[], datetime] = now,
        *,
        root_document: bytes | None = None,
        start_despite_expiry: bool = False,
    ) -> None:
        """`pinned` is the public root key that came with the app; a folder that was pulled to before has it.

        After a check, `expiries` has the dates of the documents that it relied on.

        `root_document` is a root document of any version that came with the app, instead: where several root keys must
        sign, one key is not enough to start from. With `start_despite_expiry`, a device that has nothing yet takes a
        release whose root document or timestamp has expired, until the release itself expires: a new pod of a service
        that other pods still play.

        Raises:
            UntrustedError: there is no root key, or it is not one.
            StoreError: the reference has another form.
        """
        self.reference, self._sources, self._clock = reference, sources, clock
        self.installation, self._start_despite_expiry = Installation(folder), start_despite_expiry
        self._name, self._alias = split_reference(reference)
        self.expiries: dict[SignedDocument, datetime] = {}
        self._carried = read_first(root_document, "root document of the app") if root_document is not None else None
        given = _checked_key(pinned)
        if given is None and self._carried is not None:
            given = self._carried.public_keys("root")[0]
        record = self.installation.record()
        if record is None and given is None:
            damaged = "its record is damaged, and it " if (folder / RECORD).exists() else ""
            raise UntrustedError(f"{folder}: {damaged}has no root key yet; give the publisher's (--root-key)")
        self._pinned = given or (record.pinned if record else "")

    def check(self) -> AvailableUpdate:
        """The available update, without downloading its files or writing anything.

        Raises:
            UntrustedError: no source has a trusted release that is not older than the installed one.
            StoreError: no source responds.
        """
        record, trouble = self._load_state()
        if trouble is not None:
            raise trouble
        return self._offer(record)

    def pull(
        self, on_progress: ProgressCallback = lambda path, done, size: None, limiter: BandwidthLimiter | None = None
    ) -> InstalledVersion:
        """Install the available update; returns the version in use.

        Raises:
            StoreError: it cannot be downloaded, trusted or written; the installed version stays.
        """
        try:
            with self.installation.locked():
                return self._pull(on_progress, limiter or BandwidthLimiter())
        except OSError as error:
            raise StoreError(f"{error.filename or self.installation.folder}: {error.strerror or error}") from error

    def _pull(self, on_progress: ProgressCallback, limiter: BandwidthLimiter) -> InstalledVersion:
        self.installation.set_aside_damaged_record()
        before, (record, trouble) = self.installation.record(), self._load_state()
        self._keep(record)
        if before is not None and (before.current, before.previous) != (record.current, record.previous):
            self.installation.remove_unused(record)  # a revoked key signed it
        if trouble is not None:
            raise trouble
        update = self._offer(record)
        release = update.version.release
        if update.is_new or not self.installation.is_complete(update.version):
            self._download(release, on_progress, limiter)
            self.installation.create_version(update.version)
        last = record.current if update.is_new else record.previous
        fallback = next((one for one in (last, record.previous) if one and self.installation.restore(one)), None)
        fresh = record.model_copy(
            update={
                "seen": max(record.seen, self._past(release.created)),
                "latest": {**record.latest, self.reference: (release.version, update.version.digest)},
                "current": update.version,
                "previous": fallback,
            }
        )
        self._keep(fresh)
        self.installation.remove_unused(fresh)
        return update.version

    def _download(self, release: Release, on_progress: ProgressCallback, limiter: BandwidthLimiter) -> None:
        self.installation.remove_partial_except(file.sha256 for file in release.files)
        missing, done = self._missing(release), 0
        self._check_space(release, missing)

        def arrived(path: str) -> Callable[[int], None]:
            def count(size: int) -> None:
                nonlocal done
                done += size
                on_progress(path, done, missing)

            return count

        sources = list(self._sources)
        for number, file in enumerate(release.files, 1):
            later = sum(one.size for one in release.files[number:])
            download(sources, file, self.installation.folder, arrived(file.path), limiter, later)

    def _keep(self, record: InstallState) -> None:
        if record != self.installation.record():
            self.installation.write(record)

    def _load_state(self) -> tuple[InstallState, StoreError | None]:
        """The device's state with the newest root document of any source, and the errors if none was complete.

        If none of the release keys that it knew is trusted any more, the versions that they signed are forgotten: a
        thief of such a key may have signed the highest of all (TUF 1.0.33, 5.3.11, fast-forward attacks). Installed
        versions that a revoked key signed are dropped.
        """
        record = self.installation.record()
        root, followed, trouble = self._newest_root(record.root if record else self._carried)
        if record is None:
            seen = self._past(root.created)
            return InstallState(pinned=self._pinned, root=root, seen=seen, followed=tuple(followed)), trouble
        keys = dict.fromkeys([record.pinned, *record.followed, *followed, *root.public_keys("root")])
        if self._pinned not in keys:  # an app may come with any root key that followed
            raise UntrustedError(f"{self.installation.folder}: was set up with another root key, {record.pinned[:12]}…")
        shared = set(record.root.signers("release").keys) & set(root.signers("release").keys)
        fresh = {
            "pinned": self._pinned,
            "root": root,
            "seen": max(record.seen, self._past(root.created)),
            "latest": record.latest if shared else {},
            "followed": tuple(keys),
            "current": _unless_revoked(record.current, root),
            "previous": _unless_revoked(record.previous, root),
        }
        return record.model_copy(update=fresh), trouble

    def _past(self, moment: datetime) -> datetime:
        """A document's date, at most the device's latest known time: a wrong date must not make all others old."""
        return min(moment, self._clock())

    def _newest_root(self, current: RootMetadata | None) -> tuple[RootMetadata, list[str], StoreError | None]:
        """The newest root document, the root keys on the way to it, and the errors if no source is good."""
        newest, errors, followed, good = current, list[StoreError](), list[str](), False
        has_unsigned, has_none = False, False
        for source in self._sources:
            documents = _RootReader(source)
            try:
                for root in follow(self._pinned, newest, documents.fetch):
                    newest, followed = root, [*followed, *root.public_keys("root")]
                good = True
                has_unsigned |= documents.count > 0
                has_none |= documents.count == 0 and not documents.denied
            except StoreError as error:
                errors.append(error)
            errors += documents.denied if newest is None else []
        if newest is None:
            raise self._no_root(errors, has_unsigned, has_none)
        return newest, followed, None if good else _gravest(errors)

    def _no_root(self, errors: list[StoreError], has_unsigned: bool, has_none: bool) -> StoreError:
        """Why there is no root document: what the sources have is not trusted, they have none, or cannot be read."""
        others = f"; another source: {_gravest(errors)}" if errors else ""
        if has_unsigned:
            return UntrustedError(f"root documents: none is signed by the root key {self._pinned[:12]}…{others}")
        if has_none:
            urls = ", ".join(source.url for source in self._sources)
            return UntrustedError(f"root documents: none at {urls}; is this the address of a store?{others}")
        return _gravest(errors)

    def _offer(self, record: InstallState) -> AvailableUpdate:
        """The newest release of any source; one that cannot be trusted is skipped if another can."""
        moment = max(self._clock(), record.seen)
        if not self._starts_despite_expiry(record):
            check_current(record.root, moment)
        offers, errors = list[_Offer](), list[StoreError]()
        for source in self._sources:
            try:
                offers.append(self._from(source, record, moment))
            except StoreError as error:
                errors.append(error)
        if not offers:
            raise _gravest(errors)
        version, timestamp = max(offers, key=lambda one: one.version.release.version)
        self.expiries = {"root": record.root.expires, "release": version.release.expires}
        if timestamp is not None:
            self.expiries["timestamp"] = timestamp.expires
        is_new = record.current is None or record.current.digest != version.digest
        return AvailableUpdate(version, self._missing(version.release), is_new)

    def _from(self, source: Source, record: InstallState, moment: datetime) -> _Offer:
        signers = record.root.signers("release")
        timestamp = self._timestamp(source, record, moment) if record.root.has_timestamp else None
        data = self._document(source, timestamp)
        release = read_release(data, self.reference, signers)
        check_fresh(release, moment)
        digest = payload_sha256(data, f"release {self.reference}")
        if timestamp is not None:
            check_is_confirmed(timestamp, release.version, digest)
        signed_by = tuple(sorted(signers_of(data, signers.keys, self.reference)))
        version = InstalledVersion(release=release, digest=digest, signers=signed_by)
        if self.reference in record.latest:
            _check_not_older(version, *record.latest[self.reference])
        return _Offer(version, timestamp)

    def _document(self, source: Source, timestamp: Timestamp | None) -> bytes:
        """A source's newest release; or the one that its timestamp names, if a later one has not been confirmed yet."""
        data = read_small(source, latest_key(self._name, self._alias), MAX_BYTES + 1)
        if timestamp is None or _payload_of(data) == timestamp.sha256:
            return data
        try:
            key = release_key(self._name, self._alias, timestamp.version, timestamp.sha256)
            return read_small(source, key, MAX_BYTES + 1)
        except NotFoundError:
            return data  # which is refused

    def _starts_despite_expiry(self, record: InstallState) -> bool:
        return self._start_despite_expiry and record.current is None

    def _timestamp(self, source: Source, record: InstallState, moment: datetime) -> Timestamp:
        """The source's timestamp.

        Raises:
            UntrustedError: it is not signed, has expired, or is missing.
        """
        try:
            data = read_small(source, timestamp_key(self._name, self._alias), MAX_BYTES + 1)
        except NotFoundError as error:
            raise UntrustedError(
                f"timestamp of {self.reference}: none at {source.url}; its publisher runs `tmctl artifacts timestamp`"
            ) from error
        timestamp = read_timestamp(data, self.reference, record.root.signers("timestamp"))
        if not self._starts_despite_expiry(record):
            check_timestamp_fresh(timestamp, moment)
        return timestamp

    def _missing(self, release: Release) -> int:
        """The bytes of the missing files."""
        blobs = self.installation.folder / "blobs"
        return sum({f.sha256: f.size for f in release.files if not (blobs / f.sha256).exists()}.values())

    def _check_space(self, release: Release, missing: int) -> None:
        folder = self.installation.folder
        arrived = sum(path.stat().st_size for path in (folder / "partial").glob("*"))
        copies = 0 if self.installation.can_link() else release.size
        free, needed = shutil.disk_usage(folder).free, max(0, missing - arrived) + copies
        if needed and free < needed + RESERVE:
            raise StoreError(
                f"{folder}: {free / 1e6:.0f} MB are free, and {(needed + RESERVE) / 1e6:.0f} MB are needed"
            )


def _checked_key(pinned: str | None) -> str | None:
    """A root key in lower case.

    Raises:
        UntrustedError: it is no public key.
    """
    key = pinned.strip().lower() if pinned is not None else None
    if key is not None and (not _KEY.fullmatch(key) or scheme_of(key) is None):
        raise UntrustedError(
            f"root key {key[:12]!r}: 64 or 130 hexadecimal digits are needed (`tmctl signing-keys show`)"
        )
    return key


class _RootReader:
    """Reads root documents of a source. One that denies access is taken to have none, which is noted."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.count, self.denied = 0, list[StoreError]()

    def fetch(self, version: int) -> bytes | None:
        """A root document; None if the source has none of this version."""
        try:
            data = read_small(self._source, root_key(version), MAX_BYTES + 1)
        except NotFoundError:
            return None
        except AccessDeniedError as error:
            self.denied.append(error)
            return None
        self.count += 1
        return data


def _payload_of(data: bytes) -> str | None:
    """The SHA-256 of an envelope's payload; None if it is no envelope."""
    try:
        return payload_sha256(data, "release")
    except UntrustedError:
        return None


def _unless_revoked(version: InstalledVersion | None, root: RootMetadata) -> InstalledVersion | None:
    """An installed version, if enough of the keys that signed it are not revoked."""
    if version is None or not root.revoked:
        return version
    remaining = set(version.signers) - set(root.revoked)
    return version if len(remaining) >= root.signers("release").threshold else None


def _gravest(errors: Sequence[StoreError]) -> StoreError:
    """The error to report if all sources fail: an untrusted document, unless a source denied access."""
    return min(
        errors,
        key=lambda error: 0 if isinstance(error, AccessDeniedError) else 1 if isinstance(error, UntrustedError) else 2,
    )


def _check_not_older(version: InstalledVersion, here: int, digest: str) -> None:
    """Raise if a source's release is older than the installed one, or differs at the same version.

    Raises:
        UntrustedError: it is.
    """
    there = version.release.version
    if there < here:
        raise UntrustedError(
            f"release {version.release.reference}: version {there} is offered, and {here} was installed"
        )
    if there == here and version.digest != digest:
        raise UntrustedError(
            f"release {version.release.reference}: version {there} is offered with other content than installed"
        )
