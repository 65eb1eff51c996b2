"""The publisher's side of releases: signs them, moves aliases. Devices read this with `pull`.

    releases/NAME/ALIAS/v00000007-DIGEST.json  every release of an alias, never changed
    releases/NAME/ALIAS/latest.json            a copy of the newest, for clients that cannot list
    releases/NAME/ALIAS/timestamp.json         confirms it every few days, if the root document has such a role

No step relies on atomic creation, which not every store has (S3's If-None-Match is not atomic on every server). A
release is written under its own name, and then the names beside it are listed: a publisher that sees another release of
the same version withdraws its own and tries the next version. This relies on lists that show earlier writes, which S3
guarantees. The copy is written last, and then checked against newer releases. A publisher that is killed before it
withdraws leaves a second release of a version; the one in the copy counts.

An attacker can write anything to the store: only documents that are signed by a key that was not revoked count, and
only under the name of their version and digest. Documents that the attacker removes are noticed by the publisher's own
record of versions: nothing is signed that would take an alias back.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from tinymusician.artifacts.blobs import blob_key
from tinymusician.artifacts.envelope import payload_sha256, seal, textual, textual_object
from tinymusician.artifacts.keys import PrivateKey
from tinymusician.artifacts.manifest import Manifest
from tinymusician.artifacts.reference import split_reference
from tinymusician.artifacts.release import KIND, Release, latest_key, read_release, release_key
from tinymusician.artifacts.release_record import RecordedRelease, ReleaseRecord
from tinymusician.artifacts.root_documents import RootDocuments
from tinymusician.artifacts.run_state import now
from tinymusician.artifacts.store import Store
from tinymusician.artifacts.timestamp import KIND as TIMESTAMP
from tinymusician.artifacts.timestamp import Timestamp, read_timestamp, timestamp_key
from tinymusician.artifacts.trust import (
    SPEC,
    RoleName,
    RootMetadata,
)
from tinymusician.errors import KeyFileError, NotFoundError, StoreError, UntrustedError
from tinymusician.json_types import JsonObject

DAYS = 90
TIMESTAMP_DAYS = 7
_TRIES, _PAUSE = 20, 0.05


class ReleaseRegistry(RootDocuments):
    """Releases in a store, signed with keys of a folder that its root documents trust."""

    def __init__(self, store: Store, keys: Path, clock: Callable[[], datetime] = now) -> None:
        super().__init__(store, keys, clock)
        self._record = ReleaseRecord(keys)

    def rotate(self, role: RoleName, revoke: bool = False, tokens: Sequence[str] = ()) -> RootMetadata:
        """Replace the keys of a role, and sign the newest releases again; what old release keys signed does not count.

        With `revoke`, because others may have used the keys, neither publishers nor devices trust what earlier release
        keys signed: inspect the good artifacts, and publish them again.
        """
        after = self.replace_keys(role, revoke, tokens)
        self.renew()
        return after

    def renew(self, days: int = DAYS) -> list[Release]:
        """Sign every alias's newest release again, with the current key and a new expiry date.

        Raises:
            UntrustedError: releases were removed.
        """
        return [self._add(release, days) for release in self._all_newest()]

    def check_can_release(self) -> None:
        """Check that this machine has the pin and as many release keys as must sign, and can record versions.

        Raises:
            KeyFileError: it has not.
            StoreError: it cannot.
        """
        self._signing_keys("release", self.roots()[-1])
        self._record.check_writable()

    def aliases(self, revoked: bool = False) -> list[tuple[str, str]]:
        """Every name and alias with a trusted release, in order; optionally also those of revoked keys."""
        parts = [entry.key.split("/") for entry in self.store.list("releases/")]
        aliases = sorted({(part[1], part[2]) for part in parts if len(part) == 4})
        return [one for one in aliases if next(self._signed(*one, revoked=revoked), None) is not None]

    def recorded(self) -> list[tuple[str, str]]:
        """Every name and alias of which this machine has released or confirmed a version that still counts."""
        return [split_reference(one) for one in self._record.references() if self._recorded(one) is not None]

    def history(self, name: str, alias: str, revoked: bool = False) -> list[Release]:
        """All trusted releases of an alias, oldest first; optionally also those of revoked keys."""
        copied = self._copied(name, alias)
        releases: dict[int, tuple[str, Release]] = {}
        for key, release in self._signed(name, alias, revoked=revoked):
            if release.version not in releases or key.endswith(copied):
                releases[release.version] = (key, release)
        return [releases[version][1] for version in sorted(releases)]

    def latest(self, name: str, alias: str) -> Release | None:
        """The trusted release in an alias's latest.json, which is read without a list; None without one."""
        try:
            return self._read(self.store.get(latest_key(name, alias)), f"{name}@{alias}", self.roots(), revoked=True)
        except (NotFoundError, UntrustedError):
            return None

    def newest(self, name: str, alias: str) -> Release:
        """The newest release of an alias.

        Raises:
            NotFoundError: there is none.
            UntrustedError: later releases were removed.
        """
        releases = self.history(name, alias)
        self._check_none_removed(f"{name}@{alias}", releases[-1].version if releases else 0)
        if not releases:
            raise NotFoundError(
                f"release {name}@{alias}: not in {self.store.url}; `tmctl artifacts aliases` lists those that are"
            )
        return releases[-1]

    def release(self, manifest: Manifest, alias: str, about: JsonObject, days: int = DAYS) -> Release:
        """Sign an artifact's files as the next version of its name's alias."""
        moment = self._clock()
        draft = Release(
            name=manifest.name,
            alias=alias,
            version=1,
            created=moment,
            expires=moment,
            artifact=manifest.reference,
            kind=manifest.kind,
            licence=manifest.licence,
            files=tuple(file.model_dump() for file in manifest.files),
            about=textual_object(about),
        )
        return self._add(draft, days)

    def move(self, source: Release, alias: str, why: JsonObject, days: int = DAYS) -> Release:
        """Sign `source`'s files as the next version of another alias, or of its own; `why` is stored in it."""
        about = {**source.about, "why": textual(why)}
        return self._add(source.model_copy(update={"alias": alias, "about": about}), days)

    def stamp(self, days: int) -> list[Timestamp]:
        """Confirm the newest release of every alias for some days, with the timestamp key alone.

        Raises:
            KeyFileError: the root document has no such role, or its key is not here.
            StoreError: this machine cannot record what it confirms.
        """
        root = self.roots()[-1]
        if not root.has_timestamp:
            raise KeyFileError(
                f"store {self.store.url}: its root document {root.version} has no timestamp key, so none is needed"
            )
        self._record.check_writable()
        return [self._stamp(release, root, days) for release in self._all_newest()]

    def _all_newest(self) -> list[Release]:
        """The newest releases of all aliases, those of the record included."""
        return [self.newest(*one) for one in sorted({*self.aliases(), *self.recorded()})]

    def _recorded(self, reference: str) -> RecordedRelease | None:
        """What this machine has released or confirmed, unless all keys that could sign it are revoked since."""
        recorded = self._record.read(reference)
        return None if recorded is None or set(recorded.keyids) <= set(self.roots()[-1].revoked) else recorded

    def _check_none_removed(self, reference: str, version: int) -> None:
        """Check that the newest version in the store is not older than the recorded one.

        Raises:
            UntrustedError: it is.
        """
        recorded = self._recorded(reference)
        if recorded is not None and version < recorded.version:
            raise UntrustedError(
                f"release {reference}: version {recorded.version} was released, and the newest in {self.store.url} is "
                f"{version or 'none'}; later releases were removed. Put them back, or delete "
                f"{self._record.path(reference)} to go on from what is there"
            )

    def _remember(self, release: Release, root: RootMetadata) -> None:
        """Record a version that is released or confirmed, if it is a later one."""
        recorded = self._recorded(release.reference)
        if recorded is None or recorded.version < release.version:
            keyids = tuple(root.roles["release"].keyids)
            self._record.write(release.reference, RecordedRelease(version=release.version, keyids=keyids))

    def _stamp(self, release: Release, root: RootMetadata, days: int) -> Timestamp:
        """Confirm the release that an alias's latest.json has, which devices read.

        Raises:
            UntrustedError: that is another one, or a later one was confirmed: somebody has removed releases.
        """
        name = release.reference
        data = self.store.get(latest_key(release.name, release.alias))
        if read_release(data, name, root.signers("release")).version != release.version:
            raise UntrustedError(
                f"release {name}: latest.json is not version {release.version}; `tmctl artifacts renew`"
            )
        before = self._timestamp(release, root)
        if before is not None and before.version > release.version:
            raise UntrustedError(
                f"release {name}: version {before.version} was confirmed, and the newest in {self.store.url} is "
                f"{release.version}; later releases were removed"
            )
        moment = self._clock().replace(microsecond=0)
        timestamp = Timestamp(
            spec=SPEC,
            name=release.name,
            alias=release.alias,
            version=release.version,
            sha256=payload_sha256(data, name),
            created=moment,
            expires=moment + timedelta(days=days),
        )
        data = seal(TIMESTAMP, timestamp.model_dump(mode="json"), self._signing_keys("timestamp", root))
        self.store.put(timestamp_key(release.name, release.alias), data)
        self._remember(release, root)
        return timestamp

    def _timestamp(self, release: Release, root: RootMetadata) -> Timestamp | None:
        """The timestamp of an alias in the store, if it is signed; its date does not matter."""
        try:
            data = self.store.get(timestamp_key(release.name, release.alias))
            return read_timestamp(data, release.reference, root.signers("timestamp"))
        except (NotFoundError, UntrustedError):
            return None

    def _add(self, draft: Release, days: int) -> Release:
        """Give a draft the next version, sign it, and point the alias at it.

        Raises:
            StoreError: files are missing, or other publishers write concurrently.
            UntrustedError: no device would accept it.
        """
        root = self.roots()[-1]
        keys = self._signing_keys("release", root)
        self._record.check_writable()
        for file in draft.files:
            if not self.store.exists(blob_key(file.sha256)):
                raise StoreError(f"release {draft.reference}: {file.path} is not in the store any more; make it again")
        for _ in range(_TRIES):
            moment = self._clock().replace(microsecond=0)
            before = next(self._signed(draft.name, draft.alias), None)
            self._check_none_removed(draft.reference, before[1].version if before else 0)
            version = before[1].version + 1 if before else 1
            dates = {"created": moment, "expires": moment + timedelta(days=days)}
            release = draft.model_copy(update={"version": version, **dates})
            data = _sealed(release, keys)
            read_release(data, draft.reference, root.signers("release"))
            place = _place(release, data)
            self.store.put(place, data)
            if [one for one, _ in self._signed(draft.name, draft.alias, version)] == [place]:
                self._point(place, release)
                self._remember(release, root)
                self._stamp_if_possible(release, root)
                return release
            self.store.delete(place)
            time.sleep(random.uniform(_PAUSE, 10 * _PAUSE))
        raise StoreError(f"release {draft.reference}: other publishers write it at the same time; try again later")

    def _stamp_if_possible(self, release: Release, root: RootMetadata) -> None:
        """Confirm a new release at once, if the timestamp key is here; else the job that has it does later."""
        if root.has_timestamp:
            with contextlib.suppress(KeyFileError):
                self._stamp(release, root, TIMESTAMP_DAYS)

    def _point(self, release_key: str, release: Release) -> None:
        """Copy a release, or a newer one, and check afterwards that the copy is still the newest."""
        name, alias = release.name, release.alias
        for _ in range(_TRIES):
            key, newest = next(self._signed(name, alias))
            try:
                ends = self._copied(name, alias)
                same = [one for one, _ in self._signed(name, alias, newest.version) if one.endswith(ends)]
                data = self.store.get(release_key if newest.version == release.version else same[0] if same else key)
            except NotFoundError:  # withdrawn meanwhile
                time.sleep(random.uniform(_PAUSE, 10 * _PAUSE))
                continue
            self.store.put(latest_key(name, alias), data)
            later = next(self._signed(name, alias))[1]
            if later.version == newest.version and self.store.get(latest_key(name, alias)) == data:
                return
            time.sleep(random.uniform(_PAUSE, 10 * _PAUSE))
        raise StoreError(
            f"release {release.reference}: version {release.version} is stored, but {latest_key(name, alias)} "
            f"reads back as something else after {_TRIES} writes; a cache before the store? (`tmctl artifacts renew` "
            "writes it again)"
        )

    def _signed(
        self, name: str, alias: str, version: int | None = None, revoked: bool = False
    ) -> Iterator[tuple[str, Release]]:
        """Keys and trusted releases of an alias, or of one of its versions, the newest first."""
        roots = self.roots()
        folder = f"releases/{name}/{alias}/v"
        entries = list(self.store.list(folder if version is None else f"{folder}{version:08}-"))
        for entry in reversed(entries):
            try:
                data = self.store.get(entry.key)
                release = self._read(data, f"{name}@{alias}", roots, revoked)
            except (NotFoundError, UntrustedError):  # withdrawn meanwhile, or not of this publisher
                continue
            if entry.key == _place(release, data):
                yield entry.key, release

    def _read(self, data: bytes, reference: str, roots: Sequence[RootMetadata], revoked: bool) -> Release:
        """A release that is signed as any of the root documents demands, by keys that are not revoked.

        Raises:
            UntrustedError: it is not.
        """
        ignored = set() if revoked else set(roots[-1].revoked)
        problem: UntrustedError | None = None
        for root in reversed(roots):
            signers = root.signers("release")
            trusted = {keyid: public for keyid, public in signers.keys.items() if keyid not in ignored}
            try:
                return read_release(data, reference, signers.model_copy(update={"keys": trusted}))
            except UntrustedError as error:
                problem = problem or error
        assert problem is not None, "there is a root document"
        raise problem

    def _copied(self, name: str, alias: str) -> str:
        """The suffix of the key of the release that was copied last."""
        try:
            return _end(self.store.get(latest_key(name, alias)))
        except (NotFoundError, UntrustedError):
            return "-"


def _sealed(release: Release, keys: Sequence[PrivateKey]) -> bytes:
    try:
        return seal(KIND, release.model_dump(mode="json"), keys)
    except ValueError as error:
        raise UntrustedError(f"release {release.reference}: cannot be represented as canonical JSON: {error}") from None


def _place(release: Release, data: bytes) -> str:
    return release_key(release.name, release.alias, release.version, payload_sha256(data, "release"))


def _end(data: bytes) -> str:
    return f"-{payload_sha256(data, 'release')[:12]}.json"
