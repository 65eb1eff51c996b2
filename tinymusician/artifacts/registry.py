"""The publisher's side of releases: signing them, moving aliases, keys. Devices read what this writes (see `pull`).

keys/root-000001.json                     root documents, numbered without gaps
releases/NAME/ALIAS/v00000007-DIGEST.json every release of an alias, never changed
releases/NAME/ALIAS/latest.json           a copy of the newest, for clients that cannot list

Nothing here relies on a store that can create atomically, for not all can (S3's If-None-Match is not atomic on every
server). A release is written under a name of its own, and then the names beside it are listed: who sees another of the
same version withdraws and tries the next one. That a list shows what was written before it is relied on; S3 promises
it. The copy is written last, and whoever writes it looks afterwards whether a newer release has come.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tinymusician.artifacts import trust
from tinymusician.artifacts.envelope import seal
from tinymusician.artifacts.keys import Role, load_key, new_key
from tinymusician.artifacts.manifest import Manifest
from tinymusician.artifacts.release import KIND, Release, latest_key, read_release
from tinymusician.artifacts.runs import now
from tinymusician.artifacts.store import Store
from tinymusician.artifacts.trust import Root, by_id, next_root, read_first, read_root, root_key, sealed_root
from tinymusician.errors import KeyFileError, NotFound, StoreError

DAYS = 90
_TRIES, _PAUSE = 20, 0.05


class Registry:
    """Releases in a store, signed with keys of a folder."""

    def __init__(self, store: Store, keys: Path, clock: Callable[[], datetime] = now) -> None:
        self.store, self._keys, self._clock = store, keys, clock

    def roots(self) -> list[Root]:
        """All root documents, oldest first, each checked against the one before.

        Raises:
            KeyFileError: there is none.
            Refused: one is not signed as it must be.
        """
        found: list[Root] = []
        for version in range(1, trust.MOST):
            try:
                data = self.store.get(root_key(version))
            except NotFound:
                break
            found.append(read_root(data, version, found[-1].root) if found else read_first(data))
        if not found:
            raise KeyFileError(f"store {self.store.url}: has no root document; `tmctl keys create` makes keys and one")
        return found

    def create(self) -> Root:
        """Make both keys, and the first root document.

        Raises:
            KeyFileError: there is one already.
        """
        if self.store.exists(root_key(1)):
            raise KeyFileError(f"store {self.store.url}: has keys already; `tmctl keys rotate` replaces them")
        keys = new_key("root", self._keys), new_key("release", self._keys)
        root = next_root(None, *keys, self._clock())
        self.store.put(root_key(1), sealed_root(root, keys[:1]))
        return root

    def rotate(self, role: Role, revoke: bool = False) -> Root:
        """Replace a key by a new one, and sign what was newest anew; what the old release key signed counts no more.

        With `revoke`, because others may have used the old key, nothing is signed anew: whatever is still good must be
        released again by somebody who looks at it.
        """
        before = self.roots()[-1]
        old = load_key("root", self._keys, by_id(before.root))
        root = new_key("root", self._keys) if role == "root" else old
        kept = None if role == "release" else load_key("release", self._keys, before.release_keys)
        after = next_root(before, root, kept or new_key("release", self._keys), self._clock())
        self.store.put(root_key(after.version), sealed_root(after, [old] if root is old else [old, root]))
        if not revoke:
            self.renew()
        return after

    def renew(self, days: int = DAYS) -> list[Release]:
        """Sign every alias's newest release anew, with the key and for the days that hold now."""
        return [self._add(self.newest(name, alias), days) for name, alias in self.aliases()]

    def aliases(self) -> list[tuple[str, str]]:
        """Every name and alias, in order."""
        parts = [entry.key.split("/") for entry in self.store.list("releases/")]
        return sorted({(part[1], part[2]) for part in parts if len(part) == 4})

    def history(self, name: str, alias: str) -> list[Release]:
        """All releases of an alias, oldest first, whichever of the keys that were ever trusted signed them."""
        trusted = {known: public for root in self.roots() for known, public in root.release_keys.items()}
        keys = self._versions(name, alias)
        return [read_release(self.store.get(key), f"{name}@{alias}", trusted) for key in keys]

    def newest(self, name: str, alias: str) -> Release:
        """The newest release of an alias.

        Raises:
            NotFound: there is none.
        """
        found = self.history(name, alias)
        if not found:
            raise NotFound(
                f"release {name}@{alias}: not in {self.store.url}; `tmctl artifacts aliases` lists those that are"
            )
        return found[-1]

    def release(self, manifest: Manifest, alias: str, about: dict[str, Any], days: int = DAYS) -> Release:
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
            about=about,
        )
        return self._add(draft, days)

    def move(self, source: Release, alias: str, why: dict[str, Any], days: int = DAYS) -> Release:
        """Sign what `source` lists as the next version of another alias, or of its own; `why` is kept with it."""
        return self._add(source.model_copy(update={"alias": alias, "about": {**source.about, "why": why}}), days)

    def _add(self, draft: Release, days: int) -> Release:
        """Give a draft the next version, sign it, and let the alias point at it."""
        key = load_key("release", self._keys, self.roots()[-1].release_keys)
        folder = f"releases/{draft.name}/{draft.alias}"
        for _ in range(_TRIES):
            moment = self._clock().replace(microsecond=0)
            dates = {"created": moment, "expires": moment + timedelta(days=days)}
            release = draft.model_copy(update={"version": self._highest(draft.name, draft.alias) + 1, **dates})
            data = seal(KIND, release.model_dump(mode="json"), [key])
            place = f"{folder}/v{release.version:08}-{hashlib.sha256(data).hexdigest()[:12]}.json"
            self.store.put(place, data)
            if [entry.key for entry in self.store.list(f"{folder}/v{release.version:08}-")] == [place]:
                self._point(draft.name, draft.alias)
                return release
            self.store.delete(place)
            time.sleep(random.uniform(_PAUSE, 10 * _PAUSE))
        raise StoreError(f"release {draft.reference}: others publish it all the time; try again later")

    def _point(self, name: str, alias: str) -> None:
        """Write the newest release's copy, and look afterwards whether it still is the newest."""
        while True:
            newest = self._versions(name, alias)[-1]
            with contextlib.suppress(NotFound):  # withdrawn meanwhile
                data = self.store.get(newest)
                self.store.put(latest_key(name, alias), data)
                if self._versions(name, alias)[-1] == newest and self.store.get(latest_key(name, alias)) == data:
                    return

    def _versions(self, name: str, alias: str) -> list[str]:
        return [entry.key for entry in self.store.list(f"releases/{name}/{alias}/v")]

    def _highest(self, name: str, alias: str) -> int:
        versions = self._versions(name, alias)
        return int(versions[-1].rpartition("/v")[2].partition("-")[0]) if versions else 0
