"""What of a store nobody needs any more.

Needed is what an alias points at or pointed at before that, the newest artifacts of every name, what runs that have not
ended name in their recipes, and all that these were made of. Nothing younger than `GRACE` is touched: a publisher
stores files first and their manifest last, and stores a file again that has been there for half of that time. A
file's age is looked at once more just before it goes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from tinymusician.artifacts.blobs import GRACE, blob_key
from tinymusician.artifacts.manifest import Manifest, list_manifests
from tinymusician.artifacts.registry import Registry
from tinymusician.artifacts.release import Release
from tinymusician.artifacts.runs import ENDED, RunFolder, presumed
from tinymusician.artifacts.store import Store
from tinymusician.errors import StoreError

KEPT_RELEASES = 2
_REFERENCE = re.compile(r"[a-z0-9][a-z0-9-]*@sha256:[0-9a-f]{64}")
Told = Callable[[str], None]


@dataclass(frozen=True)
class Garbage:
    """Artifacts and blobs (by key, with their bytes) that nobody needs."""

    artifacts: dict[str, int]
    blobs: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes of both."""
        return sum(self.artifacts.values()) + sum(self.blobs.values())


def find_garbage(store: Store, registry: Registry, keep: int, clock: Callable[[], float] = time.time) -> Garbage:
    """What can go when the `keep` newest artifacts of every name stay.

    Raises:
        StoreError: a manifest cannot be read, so nobody knows what it needs.
    """
    releases = [one for name, alias in registry.aliases() for one in registry.history(name, alias)[-KEPT_RELEASES:]]
    manifests = {one.reference: one for one in list_manifests(store, _refuse)}
    needed = _closed(_wanted(store, list(manifests.values()), releases, keep), manifests)
    files = {file.sha256 for name in needed for file in manifests[name].files}
    files |= {file.sha256 for release in releases for file in release.files}
    old = clock() - GRACE
    dropped = {one.key for name, one in manifests.items() if name not in needed}
    young = {entry.key for entry in store.list("artifacts/") if entry.modified > old}
    files |= {file.sha256 for one in manifests.values() for file in one.files if one.key in young}
    artifacts = {entry.key: entry.size for entry in store.list("artifacts/") if entry.key in dropped - young}
    wanted = {blob_key(digest) for digest in files}
    blobs = {
        entry.key: entry.size
        for entry in store.list("blobs/sha256/")
        if entry.key not in wanted and entry.modified <= old
    }
    return Garbage(artifacts, blobs)


def collect(store: Store, found: Garbage, told: Told, clock: Callable[[], float] = time.time) -> int:
    """Remove it, manifests first, so that no manifest is left without its files; returns the bytes that went."""
    gone = 0
    for key, size in (*found.artifacts.items(), *found.blobs.items()):
        if any(entry.key == key and entry.modified > clock() - GRACE for entry in store.list(key)):
            continue
        store.delete(key)
        told(key)
        gone += size
    return gone


def _wanted(store: Store, manifests: Sequence[Manifest], releases: Collection[Release], keep: int) -> set[str]:
    """What somebody needs: releases, the newest of every name, and what runs that have not ended name."""
    newest: dict[str, list[str]] = {}
    for one in manifests:
        newest.setdefault(one.name, []).append(one.reference)
    wanted = {release.artifact for release in releases}
    wanted |= {reference for references in newest.values() for reference in references[-keep:]}
    for entry in store.list("runs/"):
        if entry.key.endswith("/record.json"):
            run = RunFolder(store, entry.key.removeprefix("runs/").removesuffix("/record.json"))
            if presumed(run).state not in ENDED:
                wanted |= set(_REFERENCE.findall(store.get(entry.key).decode()))
    return wanted


def _closed(wanted: Collection[str], manifests: dict[str, Manifest]) -> set[str]:
    """These, and all that they were made of."""
    found: set[str] = set()
    waiting = [name for name in wanted if name in manifests]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [str(m) for m in manifests[name].lineage.values() if isinstance(m, str) and m in manifests]
    return found


def _refuse(reason: str) -> None:
    raise StoreError(f"nothing was collected: {reason}; remove that manifest first")
