"""Garbage collection removes nothing that an alias, a run or an artifact needs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.world import World
from tinymusician.artifacts.attestations import ArtifactAttestation, attest, attestation_key
from tinymusician.artifacts.blobs import GRACE, blob_key, put_blob
from tinymusician.artifacts.garbage_collection import GcPlan, collect, find_garbage
from tinymusician.artifacts.manifest import Manifest, find, list_manifests, verify
from tinymusician.artifacts.model_card import model_card
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.run_state import RunRecord, RunResult, now
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore, StoreEntry
from tinymusician.data.shards import ShardCache
from tinymusician.errors import DigestMismatchError, NotFoundError, StoreError


def later() -> float:
    """When everything of now is old enough."""
    return time.time() + GRACE + 60


def made(world: World, number: int, **lineage: str) -> Manifest:
    result = world.made(decoder=f"decoder {number}", codec="same")
    changed = result.model_copy(update={"created": result.created + timedelta(hours=number), "lineage": lineage})
    for key in (result.key, attestation_key(result.reference)):
        world.store.delete(key)
    world.store.put(changed.key, changed.canonical())
    attest(world.store, ArtifactAttestation(artifact=changed.reference, created=changed.created))
    return changed


def garbage(world: World, keep: int = 1) -> GcPlan:
    return find_garbage(world.store, world.registry, keep, clock=later)


def gone(world: World, manifest: Manifest) -> bool:
    try:
        find(world.store, manifest.reference)
    except NotFoundError:
        return True
    return False


class IncompleteList(LocalStore):
    """A store whose list lacks some keys, as one does whose list is updated later."""

    def __init__(self, root: Path, missing: str) -> None:
        super().__init__(root)
        self.missing = missing

    def list(self, prefix: str) -> Iterator[StoreEntry]:
        return (entry for entry in super().list(prefix) if self.missing not in entry.key)


@pytest.mark.parametrize("missing", ["releases/band/stable/v", "releases/"])
def test_incomplete_list_stops_the_collection(world: World, missing: str) -> None:
    """The stable release is read from its copy, which needs no list; its blobs would have been removed."""
    released = made(world, 1)
    world.registry.release(released, "stable", {})
    made(world, 2)
    store = IncompleteList(world.folder / "store", missing)
    registry = ReleaseRegistry(store, world.folder / "keys", world.clock)
    with pytest.raises(StoreError, match=r"lists no version 1 of band@stable, which its latest\.json has"):
        find_garbage(store, registry, 1, clock=later)
    assert released.reference not in garbage(world).artifacts


def test_an_alias_that_a_list_lacks_altogether(world: World) -> None:
    """Its name is in no list: the machine that released it knows it."""
    released = made(world, 1)
    world.registry.release(released, "beta", {})
    made(world, 2)
    registry = ReleaseRegistry(IncompleteList(world.folder / "store", "releases/"), world.folder / "keys", world.clock)
    with pytest.raises(StoreError, match="lists no version 1 of band@beta"):
        find_garbage(registry.store, registry, 1, clock=later)


def test_artifacts_with_late_dates_push_no_other_out(world: World) -> None:
    newest = made(world, 1)
    for number in range(3):
        planted = world.made(decoder=f"planted {number}")
        forged = planted.model_copy(update={"created": newest.created + timedelta(days=9000 + number)})
        for key in (planted.key, attestation_key(planted.reference)):
            world.store.delete(key)
        world.store.put(forged.key, forged.canonical())
    assert newest.key not in garbage(world, keep=3).artifacts


def test_only_unreferenced_files_are_collected(world: World, tmp_path: Path) -> None:
    origin = made(world, 0)
    released, unused = made(world, 1, model=origin.reference), made(world, 2)
    named, newest = made(world, 3), made(world, 4)
    world.registry.release(released, "stable", {})
    run = RunStore(world.store, "r1")
    facts = {
        "recipe": {"quantize": {"model": named.reference}},
        "workers": 1,
        "created": now(),
        "versions": {},
        "git": {},
    }
    run.write_record(RunRecord(id="r1", kind="quantize", seeds={}, cluster="x", submission="x", **facts))  # type: ignore[arg-type]
    world.store.put(blob_key("0" * 64), b"of a publisher that was killed")

    result = garbage(world)
    assert list(result.artifacts) == [f"artifacts/band/{unused.digest}.json"]
    assert list(result.attestations) == [f"attestations/band/{unused.digest}.json"]
    decoders = {file.path: file.sha256 for file in unused.files}
    assert set(result.blobs) == {blob_key(decoders["decoder"]), blob_key("0" * 64)}, "the codec is shared"
    removed: list[str] = []
    assert collect(world.store, lambda: garbage(world), removed.append, later) == result.size
    assert removed == [*result.artifacts, *result.attestations, *result.blobs]
    assert gone(world, unused)
    for manifest in (origin, released, named, newest):
        assert verify(world.store, find(world.store, manifest.reference), tmp_path) == []
    assert world.client().pull().release.version == 1
    assert garbage(world) == GcPlan({}, {}, {}, {})
    run.start()
    run.fail("killed")
    assert garbage(world) == GcPlan({}, {}, {}, {}), "--resume needs it"
    run.succeed(RunResult(metrics={}))
    assert list(garbage(world).artifacts) == [f"artifacts/band/{named.digest}.json"]


def test_previous_target_of_an_alias_is_not_collected(world: World) -> None:
    first, second, third = (made(world, number) for number in range(3))
    for manifest in (first, second, third):
        world.registry.release(manifest, "stable", {})
    assert list(garbage(world).artifacts) == [f"artifacts/band/{first.digest}.json"]


def test_young_files_are_not_collected(world: World, tmp_path: Path) -> None:
    """Neither now, nor when it became young between the looking and the taking."""
    made(world, 0), made(world, 1)
    assert find_garbage(world.store, world.registry, 1) == GcPlan({}, {}, {}, {})
    result = garbage(world)
    assert result.blobs
    assert collect(world.store, lambda: result, lambda key: None) == 0, "seen as of now, nothing is a week old"
    assert garbage(world) == result


def test_renewal_is_not_a_previous_release(world: World) -> None:
    first, second = made(world, 0), made(world, 1)
    world.registry.release(first, "stable", {})
    world.registry.release(second, "stable", {})
    for _ in range(3):
        world.registry.renew()
    assert not garbage(world).artifacts


def test_a_step_is_open_only_while_its_pipeline_is(world: World) -> None:
    first, _ = made(world, 0), made(world, 1)
    facts: dict[str, Any] = {"workers": 1, "created": now(), "versions": {}, "git": {}, "seeds": {}}
    facts |= {"recipe": {"model": first.reference}, "cluster": "x", "submission": "x"}
    whole, step = RunStore(world.store, "p1"), RunStore(world.store, "p1.distill")
    whole.write_record(RunRecord(id="p1", kind="pipeline", **{**facts, "recipe": {}}))
    step.write_record(RunRecord(id="p1.distill", kind="distill", part_of="p1", **facts))
    whole.start()
    step.start()
    assert not garbage(world).artifacts
    whole.fail("killed")
    assert list(garbage(world).artifacts) == [first.key]


def test_shards_are_reused_and_recomputed(world: World) -> None:
    """What a run may still read is never taken; on demand old ones go, as a whole, once no run is left."""
    shards = ShardCache(world.store, "signals", {"teacher": "x"}, 2)
    for index in range(2):
        shards.write(index, {"logits": np.full(4, index, np.float32)})
    run = RunStore(world.store, "r1")
    facts: dict[str, Any] = {"recipe": {}, "workers": 1, "created": now(), "versions": {}, "git": {}}
    run.write_record(RunRecord(id="r1", kind="distill", seeds={}, cluster="x", submission="x", **facts))
    assert garbage(world) == GcPlan({}, {}, {}, {})

    def plan(days: float = 7) -> GcPlan:
        return find_garbage(world.store, world.registry, 1, days, later)

    assert plan() == GcPlan({}, {}, {}, {}), "a run has not ended"
    assert plan().open_runs == ("r1",)
    run.start()
    run.succeed(RunResult())
    assert plan(30) == GcPlan({}, {}, {}, {}), "too young"
    assert len(plan().shards) == 2
    collect(world.store, plan, lambda key: None, later)
    assert list(world.store.list("shards/")) == list(world.store.list("blobs/")) == []
    assert ShardCache(world.store, "signals", {"teacher": "x"}, 2).missing() == [0, 1]


def test_shard_without_its_blob_is_computed_again(world: World) -> None:
    shards = ShardCache(world.store, "signals", {"teacher": "x"}, 1)
    shards.write(0, {"logits": np.zeros(4, np.float32)})
    for entry in list(world.store.list("blobs/")):
        world.store.delete(entry.key)
    with pytest.raises(DigestMismatchError, match="was dropped: run the job again"):
        ShardCache(world.store, "signals", {"teacher": "x"}, 1).read(0)
    assert ShardCache(world.store, "signals", {"teacher": "x"}, 1).missing() == [0]


def test_releases_of_a_revoked_key_need_review(world: World) -> None:
    first, second = made(world, 0), made(world, 1)
    world.registry.release(first, "stable", {})
    world.registry.rotate("release", revoke=True)
    assert not garbage(world).artifacts
    world.registry.release(second, "stable", {})
    assert list(garbage(world).artifacts) == [first.key]


def test_publisher_refreshes_old_blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    store, path = LocalStore(tmp_path / "store"), tmp_path / "file"
    path.write_bytes(b"content")
    place = tmp_path / "store" / blob_key(put_blob(store, path))
    for age, fresh in ((GRACE / 4, False), (GRACE * 0.75, True)):
        moment = time.time() - age
        os.utime(place, (moment, moment))
        put_blob(store, path)
        assert (place.stat().st_mtime > moment + 1) == fresh


def test_unreadable_manifest_stops_garbage_collection(world: World) -> None:
    manifest = made(world, 0)
    world.store.put(f"artifacts/band/{manifest.digest}.json", b"{}")
    with pytest.raises(StoreError, match="nothing was collected: "):
        garbage(world)


def test_model_card_has_licence_and_metrics(world: World) -> None:
    manifest = made(world, 1, model="band-large", run="r7")
    text = model_card(manifest, list_manifests(world.store, lambda reason: None))
    for said in (manifest.reference, "Apache-2.0", "| band-large | ", "run r7", "## Data"):
        assert said in text
