"""The publisher's side of releases: signs them, moves aliases, manages keys. Devices read this with `pull`.

    keys/root-000001.json                      root documents, numbered without gaps
    releases/NAME/ALIAS/v00000007-DIGEST.json  every release of an alias, never changed
    releases/NAME/ALIAS/latest.json            a copy of the newest, for clients that cannot list

No step relies on atomic creation, which not every store has (S3's If-None-Match is not atomic on every server). A
release is written under its own name, and then the names beside it are listed: a publisher that sees another release of
the same version withdraws its own and tries the next version. This relies on lists that show earlier writes, which S3
guarantees. The copy is written last, and then checked against newer releases. A publisher that is killed before it
withdraws leaves a second release of a version; the one in the copy counts.

An attacker can write anything to the store: only documents that are signed by a key that was not revoked count, and
only under the name of their version and digest.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tinymusician.artifacts import trust
from tinymusician.artifacts.blobs import blob_key
from tinymusician.artifacts.envelope import seal, textual, textual_object
from tinymusician.artifacts.keys import Role, load_key, new_key
from tinymusician.artifacts.manifest import Manifest
from tinymusician.artifacts.release import KIND, Release, latest_key, read_release
from tinymusician.artifacts.root_pin import PIN, RootPin, read_pin, write_pin
from tinymusician.artifacts.run_state import now
from tinymusician.artifacts.store import Store
from tinymusician.artifacts.trust import RootMetadata, by_id, next_root, read_first, read_root, root_key, sign_root
from tinymusician.errors import KeyFileError, NotFoundError, StoreError, UntrustedError
from tinymusician.json_types import JsonObject

DAYS = 90
_TRIES, _PAUSE = 20, 0.05


class ReleaseRegistry:
    """Releases in a store, signed with keys of a folder."""

    def __init__(self, store: Store, keys: Path, clock: Callable[[], datetime] = now) -> None:
        self.store, self._keys, self._clock = store, keys, clock

    def roots(self) -> list[RootMetadata]:
        """All root documents, oldest first, each verified against the one before, and all against the pin.

        Without a pin (on a machine without keys) the first one is trusted.

        Raises:
            KeyFileError: there is none.
            UntrustedError: a signature is missing, or they do not match the pin.
        """
        roots, digests = list[RootMetadata](), dict[int, str]()
        for version in range(1, trust.MAX_VERSIONS + 1):
            try:
                data = self.store.get(root_key(version))
            except NotFoundError:
                break
            roots.append(read_root(data, version, roots[-1].root) if roots else read_first(data))
            digests[version] = hashlib.sha256(data).hexdigest()
        if not roots:
            raise KeyFileError(
                f"store {self.store.url}: has no root document; `tmctl signing-keys create` makes keys and one"
            )
        pin = read_pin(self._keys)
        if pin is not None and (pin.root not in roots[0].root or digests.get(pin.version) != pin.sha256):
            raise UntrustedError(
                f"store {self.store.url}: its root documents are not those that were made with the keys of "
                f"{self._keys}; either this is another store, or they were replaced"
            )
        return roots

    def create(self) -> RootMetadata:
        """Create both keys, and the first root document.

        Raises:
            KeyFileError: there is one already.
        """
        if self.store.exists(root_key(1)):
            raise KeyFileError(f"store {self.store.url}: has keys already; `tmctl signing-keys rotate` replaces them")
        root, release = new_key("root", self._keys), new_key("release", self._keys)
        return self._publish(next_root(None, root, release, self._clock()), root)

    def extend(self) -> RootMetadata:
        """Extend the root document by a year, with the same keys."""
        before = self.roots()[-1]
        root, release = self._signing_key("root", before), self._signing_key("release", before)
        return self._publish(next_root(before, root, release, self._clock(), before.revoked), root)

    def rotate(self, role: Role, revoke: bool = False) -> RootMetadata:
        """Replace a key, and sign the newest releases again; what the old release key signed is no longer trusted.

        With `revoke`, because others may have used the key, the publisher does not trust signatures of earlier release
        keys either: inspect the good artifacts, and publish them again.
        """
        roots = self.roots()
        before = roots[-1]
        old = self._signing_key("root", before)
        root = new_key("root", self._keys) if role == "root" else old
        release = (
            new_key("release", self._keys) if role == "release" or revoke else self._signing_key("release", before)
        )
        revoked = dict.fromkeys(public for one in roots for public in one.release) if revoke else before.revoked
        after = next_root(before, root, release, self._clock(), tuple(revoked))
        self._publish(after, *([old] if root is old else [old, root]))
        self.renew()
        return after

    def renew(self, days: int = DAYS) -> list[Release]:
        """Sign every alias's newest release again, with the current key and a new expiry date."""
        return [self._add(self.newest(name, alias), days) for name, alias in self.aliases()]

    def aliases(self, revoked: bool = False) -> list[tuple[str, str]]:
        """Every name and alias with a trusted release, in order; optionally also those of revoked keys."""
        parts = [entry.key.split("/") for entry in self.store.list("releases/")]
        aliases = sorted({(part[1], part[2]) for part in parts if len(part) == 4})
        return [one for one in aliases if next(self._signed(*one, revoked=revoked), None) is not None]

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
        trusted = {keyid: public for root in self.roots() for keyid, public in root.release_keys.items()}
        try:
            return read_release(self.store.get(latest_key(name, alias)), f"{name}@{alias}", trusted)
        except (NotFoundError, UntrustedError):
            return None

    def newest(self, name: str, alias: str) -> Release:
        """The newest release of an alias.

        Raises:
            NotFoundError: there is none.
        """
        releases = self.history(name, alias)
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

    def _signing_key(self, role: Role, root: RootMetadata) -> Ed25519PrivateKey:
        """The private key of a role. Without a pin nothing is signed, since the root documents cannot be verified.

        Raises:
            KeyFileError: the key or the pin is missing.
        """
        if read_pin(self._keys) is None:
            raise KeyFileError(f"{self._keys}: {PIN} is missing; copy it from where the keys were created")
        return load_key(role, self._keys, by_id(getattr(root, role)))

    def _publish(self, root: RootMetadata, *keys: Ed25519PrivateKey) -> RootMetadata:
        data = sign_root(root, keys)
        self.store.put(root_key(root.version), data)
        if self.store.get(root_key(root.version)) != data:
            raise KeyFileError(
                f"root document {root.version}: was written by another process at the same time; that one counts"
            )
        pin = read_pin(self._keys)
        first = pin.root if pin and root.version > 1 else root.root[0]
        write_pin(self._keys, RootPin(root=first, version=root.version, sha256=hashlib.sha256(data).hexdigest()))
        return root

    def _add(self, draft: Release, days: int) -> Release:
        """Give a draft the next version, sign it, and point the alias at it.

        Raises:
            StoreError: files are missing, or other publishers write concurrently.
            UntrustedError: no device would accept it.
        """
        root = self.roots()[-1]
        key = self._signing_key("release", root)
        for file in draft.files:
            if not self.store.exists(blob_key(file.sha256)):
                raise StoreError(f"release {draft.reference}: {file.path} is not in the store any more; make it again")
        for _ in range(_TRIES):
            moment = self._clock().replace(microsecond=0)
            before = next(self._signed(draft.name, draft.alias), None)
            version = before[1].version + 1 if before else 1
            dates = {"created": moment, "expires": moment + timedelta(days=days)}
            release = draft.model_copy(update={"version": version, **dates})
            data = _sealed(release, key)
            read_release(data, draft.reference, root.release_keys)
            place = _place(release, data)
            self.store.put(place, data)
            if [one for one, _ in self._signed(draft.name, draft.alias, version)] == [place]:
                self._point(place, release)
                return release
            self.store.delete(place)
            time.sleep(random.uniform(_PAUSE, 10 * _PAUSE))
        raise StoreError(f"release {draft.reference}: other publishers write it at the same time; try again later")

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
        trusted = {keyid: public for root in roots for keyid, public in root.release_keys.items()}
        trusted = {keyid: public for keyid, public in trusted.items() if revoked or public not in roots[-1].revoked}
        folder = f"releases/{name}/{alias}/v"
        entries = list(self.store.list(folder if version is None else f"{folder}{version:08}-"))
        for entry in reversed(entries):
            try:
                data = self.store.get(entry.key)
                release = read_release(data, f"{name}@{alias}", trusted)
            except (NotFoundError, UntrustedError):  # withdrawn meanwhile, or not of this publisher
                continue
            if entry.key == _place(release, data):
                yield entry.key, release

    def _copied(self, name: str, alias: str) -> str:
        """The suffix of the key of the release that was copied last."""
        try:
            return _end(self.store.get(latest_key(name, alias)))
        except NotFoundError:
            return _end(b"")


def _sealed(release: Release, key: Ed25519PrivateKey) -> bytes:
    try:
        return seal(KIND, release.model_dump(mode="json"), [key])
    except ValueError as error:
        raise UntrustedError(f"release {release.reference}: cannot be represented as canonical JSON: {error}") from None


def _place(release: Release, data: bytes) -> str:
    return f"releases/{release.name}/{release.alias}/v{release.version:08}{_end(data)}"


def _end(data: bytes) -> str:
    return f"-{hashlib.sha256(data).hexdigest()[:12]}.json"
