"""Garbage collection of a store.

Reachable are the current and previous artifact of every alias, the newest artifacts of every name, the artifacts named
in the recipes of runs that have not succeeded, everything that these were made from, and shards. Values younger than
`GRACE` are never removed: a publisher writes files first and the manifest last, and writes a file again that is older
than half of it. Reachability and age are determined again just before each removal.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

from tinymusician.artifacts.attestations import attestation_key, is_attested
from tinymusician.artifacts.blobs import GRACE, blob_key
from tinymusician.artifacts.manifest import Manifest, list_manifests
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.release import Release
from tinymusician.artifacts.run_state import ENDED
from tinymusician.artifacts.runs import RunStore, all_runs
from tinymusician.artifacts.store import DAY, Store, StoreEntry
from tinymusician.errors import NotFoundError, StoreError

RETAINED_RELEASES = 2
_REFERENCE = re.compile(r"[a-z0-9][a-z0-9-]*@sha256:[0-9a-f]{64}")
ProgressCallback = Callable[[str], None]


@dataclass(frozen=True)
class GcPlan:
    """Unreachable keys with their sizes: artifacts, shard notes, blobs, attestations; and the runs that go on."""

    artifacts: dict[str, int]
    shards: dict[str, int]
    blobs: dict[str, int]
    attestations: dict[str, int]
    open_runs: tuple[str, ...] = field(default=(), compare=False)

    @property
    def size(self) -> int:
        """The total size in bytes."""
        return sum(sum(part.values()) for part in (self.artifacts, self.shards, self.blobs, self.attestations))


def find_garbage(
    store: Store,
    registry: ReleaseRegistry,
    keep: int,
    shard_days: float | None = None,
    clock: Callable[[], float] = time.time,
) -> GcPlan:
    """What can be removed if the `keep` newest artifacts of every name stay.

    Shards (signals, samples, clips, features) stay; with `shard_days`, those that are older may go, unless a run has
    not ended.

    Raises:
        StoreError: a manifest cannot be read, so its dependencies are unknown.
    """
    old = clock() - GRACE
    manifests = {one.reference: one for one in list_manifests(store, _refuse)}
    releases = _released(registry, {one.name for one in manifests.values()})
    open_runs = dict(_open_runs(store))
    records = [*open_runs.values(), *_resumable_records(store)]
    newest = _newest(store, manifests.values(), keep)
    needed = _closure(newest | _live_references(releases, records), manifests)
    dropped = {one.key for name, one in manifests.items() if name not in needed}
    artifacts = {
        entry.key: entry.size for entry in store.list("artifacts/") if entry.key in dropped and entry.modified <= old
    }
    limit = None if shard_days is None or open_runs else clock() - max(shard_days * DAY, GRACE)
    notes = list(store.list("shards/"))
    shards = {entry.key: entry.size for entry in notes if limit is not None and entry.modified <= limit}
    files = {file.sha256 for one in manifests.values() if one.key not in artifacts for file in one.files}
    files |= {file.sha256 for release in releases for file in release.files}
    files |= {digest for entry in notes if entry.key not in shards for digest in _noted(store, entry)}
    live_blobs = {blob_key(digest) for digest in files}
    blobs = {
        entry.key: entry.size
        for entry in store.list("blobs/sha256/")
        if entry.key not in live_blobs and entry.modified <= old
    }
    keys = {attestation_key(name): one.key for name, one in manifests.items()}
    return GcPlan(artifacts, shards, blobs, _attestations(store, keys, artifacts, old), tuple(open_runs))


def _attestations(
    store: Store, attested: dict[str, str], artifacts: Collection[str], modified_before: float
) -> dict[str, int]:
    """Attestations, with their sizes, of artifacts that can be removed or are gone: not listed, and not there either.

    `attested` has the key of every listed artifact by that of its attestation.
    """

    def is_unreachable(key: str) -> bool:
        if key in attested:
            return attested[key] in artifacts
        return not store.exists(key.replace("attestations/", "artifacts/", 1))

    entries = [entry for entry in store.list("attestations/") if entry.modified <= modified_before]
    return {entry.key: entry.size for entry in entries if is_unreachable(entry.key)}


def collect(
    store: Store, find: Callable[[], GcPlan], on_progress: ProgressCallback, clock: Callable[[], float] = time.time
) -> int:
    """Remove what `find_garbage` returned, manifests and shard entries first, so that none is left without its files.

    Returns the number of bytes.
    """
    gone = 0
    for part in ("artifacts", "attestations", "shards", "blobs"):
        sizes: dict[str, int] = getattr(find(), part)
        gone += sum(_removed(store, key, size, on_progress, clock) for key, size in sizes.items())
    return gone


def _removed(store: Store, key: str, size: int, on_progress: ProgressCallback, clock: Callable[[], float]) -> int:
    if any(entry.key == key and entry.modified > clock() - GRACE for entry in store.list(key)):
        return 0
    store.delete(key)
    on_progress(key)
    return size


def _released(registry: ReleaseRegistry, names: Collection[str]) -> list[Release]:
    """The releases of every alias's last artifacts; all releases of an alias whose signing keys are all revoked.

    Raises:
        StoreError: the store's list lacks a release that an alias's latest.json has: it is incomplete.
    """
    releases: list[Release] = []
    listed = registry.aliases(revoked=True)
    possible = itertools.product({*names, *(name for name, _ in listed)}, _aliases(listed))
    for name, alias in sorted({*possible, *registry.recorded()}):
        latest = registry.latest(name, alias)
        versions = [one.version for one in registry.history(name, alias, revoked=True)] if latest else []
        if latest is not None and latest.version not in versions:
            raise StoreError(
                f"nothing was collected: {registry.store.url} lists no version {latest.version} of {latest.reference}, "
                "which its latest.json has; a store must list what it has (`tmctl artifacts renew` writes it again)"
            )
    for pair in registry.recorded():
        registry.newest(*pair)  # raises if the list lacks it altogether
    for pair in listed:
        counting = registry.history(*pair)
        last = list(dict.fromkeys(release.artifact for release in reversed(counting)))[:RETAINED_RELEASES]
        releases += [one for one in counting if one.artifact in last] or registry.history(*pair, revoked=True)
    return releases


def _aliases(listed: Collection[tuple[str, str]]) -> list[str]:
    """The aliases that any name has, and those that releases begin with, in case a list lacks them all."""
    return sorted({"candidate", "stable", *(alias for _, alias in listed)})


def _open_runs(store: Store) -> Iterator[tuple[str, str]]:
    """The runs that have not ended, with their records. A run without a heartbeat counts: it may only be slow.

    A step of a pipeline ends with its pipeline.
    """
    for run in all_runs(store):
        record = run.record()
        whole = RunStore(store, record.part_of) if record.part_of else run
        if whole.exists() and whole.status().state not in ENDED:
            yield run.id, record.model_dump_json()


def _resumable_records(store: Store) -> Iterator[str]:
    """The records of runs that ended without success: `--resume` needs what they name."""
    for run in all_runs(store):
        if run.status().state in ("FAILED", "STOPPED"):
            yield run.record().model_dump_json()


def _newest(store: Store, manifests: Iterable[Manifest], count: int) -> set[str]:
    """The newest artifacts of every name, of `manifests` from the oldest to the newest.

    The attested ones count alone, too: anybody who can write to the store can give an artifact a late date.
    """
    by_name: dict[tuple[str, bool], list[str]] = {}
    for one in manifests:
        for is_trusted in (False, True) if is_attested(store, one.reference) else (False,):
            by_name.setdefault((one.name, is_trusted), []).append(one.reference)
    return {reference for references in by_name.values() for reference in references[-count:]}


def _live_references(releases: Collection[Release], records: Collection[str]) -> set[str]:
    """The artifacts of releases, and those that the runs of these records name."""
    named = {reference for record in records for reference in _REFERENCE.findall(record)}
    return named | {release.artifact for release in releases}


def _closure(roots: Collection[str], manifests: dict[str, Manifest]) -> set[str]:
    """The roots, and everything that they were derived from."""
    closure: set[str] = set()
    waiting = [name for name in roots if name in manifests]
    while waiting:
        name = waiting.pop()
        if name not in closure:
            closure.add(name)
            waiting += [str(m) for m in manifests[name].lineage.values() if isinstance(m, str) and m in manifests]
    return closure


def _noted(store: Store, note: StoreEntry) -> list[str]:
    """The digest of the blob of a shard's entry."""
    try:
        return [json.loads(store.get(note.key))["sha256"]]
    except NotFoundError:  # removed meanwhile
        return []


def _refuse(reason: str) -> None:
    raise StoreError(f"nothing was collected: {reason}; remove that manifest first")
