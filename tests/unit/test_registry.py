"""Publishers: keys, root documents and releases, while others write to the store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.world import START, World
from tinymusician.artifacts import registry as registries
from tinymusician.artifacts.keys import load_key, public_hex
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.release import Release
from tinymusician.artifacts.store import LocalStore
from tinymusician.artifacts.trust import members_of, next_root, sign_root
from tinymusician.errors import KeyFileError, NotFoundError, StoreError, UntrustedError


class TestPublishers:
    def test_foreign_root_documents(self, world: World, tmp_path: Path) -> None:
        """Who can write to the store puts a root of their own there, which trusts the genuine release key, too."""
        manifest = world.made(decoder="one")
        release = world.registry.release(manifest, "stable", {})
        genuine = world.store.get("keys/root-000001.json")
        thief = ReleaseRegistry(LocalStore(tmp_path / "thiefs"), tmp_path / "thiefs-keys", world.clock)
        first = thief.create()
        stolen_key = load_key("root", tmp_path / "thiefs-keys", first.signers("root").keys)
        trusting = members_of(first) | {"release": members_of(world.registry.roots()[0])["release"]}
        second = next_root(first, trusting, world.clock.now)
        world.store.put("keys/root-000001.json", thief.store.get("keys/root-000001.json"))
        world.store.put("keys/root-000002.json", sign_root(second, [stolen_key]))
        for act in (
            world.registry.renew,
            world.registry.roots,
            lambda: world.registry.release(manifest, "stable", {}),
            lambda: world.registry.move(release, "stable", {}),
            lambda: world.registry.rotate("release"),
        ):
            with pytest.raises(UntrustedError, match="not those that were made with the keys of"):
                act()
        world.store.put("keys/root-000001.json", genuine)
        world.store.delete("keys/root-000002.json")
        assert [one.version for one in world.registry.renew()] == [2]

    def test_deleted_revocation_is_detected(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.registry.rotate("release", revoke=True)
        world.store.delete("keys/root-000002.json")
        with pytest.raises(UntrustedError, match="not those that were made with the keys of"):
            world.registry.renew()

    def test_nothing_is_signed_without_the_pin(self, world: World) -> None:
        (world.folder / "keys" / "pin.json").unlink()
        with pytest.raises(KeyFileError, match=r"pin\.json is missing"):
            world.registry.release(world.made(decoder="one"), "stable", {})
        assert world.registry.roots()[0].public_keys("root") == (world.pinned,), "to look needs no keys"

    def test_numbers_that_are_too_large_are_text(self, world: World) -> None:
        release = world.registry.release(world.made(decoder="one"), "stable", {"seed": 1 << 60, "kl": 0.25})
        assert release.about == {"seed": str(1 << 60), "kl": "0.25"}
        with pytest.raises(UntrustedError, match="cannot be represented as canonical JSON"):
            world.registry.release(world.made(decoder="one"), "stable", {"größe": 1})

    def test_old_release_renamed_as_newer(self, world: World) -> None:
        """Who can write to the store, without a key, cannot lead the publisher back either."""
        old = world.registry.release(world.made(decoder="one"), "stable", {})
        (entry,) = world.store.list("releases/band/stable/v")
        new = world.registry.release(world.made(decoder="two"), "stable", {})
        data = world.store.get(entry.key)
        for name in ("v00000099-000000000000", f"v00000099-{entry.key[-17:-5]}", "v00000098"):
            world.store.put(f"releases/band/stable/{name}.json", data)
        world.store.put("releases/band/stable/v00000097-x.json", b"junk")
        assert world.registry.newest("band", "stable") == new
        assert world.registry.history("band", "stable") == [old, new]
        assert [one.version for one in world.registry.renew()] == [3]

    def test_releases_of_a_revoked_key_are_not_renewed(self, world: World) -> None:
        manifest = world.made(decoder="one")
        good = world.registry.release(manifest, "stable", {})
        stolen = world.release_key()
        world.leave(good.model_copy(update={"version": 99}), stolen)
        assert world.registry.newest("band", "stable").version == 99
        world.registry.rotate("release", revoke=True)
        assert world.registry.renew() == []
        with pytest.raises(NotFoundError, match="release band@stable: not in"):
            world.registry.newest("band", "stable")
        assert world.registry.release(manifest, "stable", {}).version == 1
        assert len(world.registry.history("band", "stable", revoked=True)) == 2, "of version 1 what was copied counts"

    def test_invalid_releases_are_not_written(self, world: World) -> None:
        release = world.registry.release(world.made(decoder="one"), "candidate", {})
        with pytest.raises(UntrustedError, match="alias: String should match pattern"):
            world.registry.move(release, "Stable", {})
        with pytest.raises(UntrustedError, match="is larger than 1048576 bytes"):
            world.registry.move(release, "stable", {"reason": "x" * (1 << 20)})
        assert world.registry.aliases() == [("band", "candidate")]

    def test_missing_files_are_not_released_again(self, world: World) -> None:
        release = world.registry.release(world.made(decoder="one"), "stable", {})
        world.store.delete(f"blobs/sha256/{release.files[0].sha256}")
        with pytest.raises(StoreError, match="decoder is not in the store any more"):
            world.registry.move(release, "stable", {})

    @pytest.mark.parametrize("seed", range(4))
    def test_publisher_killed_before_cleanup(self, world: World, seed: int) -> None:
        """Two of one version lie there; the one that was copied counts, whatever their names."""
        first = world.registry.release(world.made(decoder=f"one {seed}"), "stable", {})
        world.leave(first.model_copy(update={"licence": f"unfinished {seed}"}), world.release_key())
        assert world.registry.history("band", "stable") == [first]
        assert world.registry.renew()[0].licence == first.licence

    def test_concurrent_writers_lose_nothing(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registries, "_PAUSE", 0.002)
        manifests = [world.made(decoder=f"number {n}") for n in range(8)]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda manifest: world.registry.release(manifest, "stable", {}), manifests))
        result = world.registry.history("band", "stable")
        versions = [one.version for one in result]
        assert len(set(versions)) == 8
        assert {one.artifact for one in result} == {one.reference for one in manifests}
        world.client().pull()
        assert world.client().check().version.release == result[-1]


class StaleCopy(LocalStore):
    """A store behind a cache: what latest.json had first is read for ever."""

    def get(self, key: str) -> bytes:
        return b"old" if key.endswith("latest.json") else super().get(key)


def test_a_copy_that_stays_old_is_reported(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinymusician.artifacts.registry._PAUSE", 0.0)
    registry = ReleaseRegistry(StaleCopy(world.folder / "store"), world.folder / "keys", world.clock)
    with pytest.raises(StoreError, match=r"latest\.json reads back as something else after 20 writes"):
        registry.release(world.made(decoder="one"), "stable", {})
    assert world.registry.newest("band", "stable").version == 1


def test_files_outside_their_folder() -> None:
    moment = START.isoformat()
    facts: dict[str, Any] = {"name": "band", "alias": "stable", "version": 1, "created": moment, "expires": moment}
    facts |= {"artifact": "x", "kind": "bundle", "licence": "x"}

    def released(*paths: str) -> Release:
        files = [{"path": path, "size": 1, "sha256": "0" * 64} for path in paths]
        return Release.model_validate({**facts, "files": files})

    assert released("a/b.onnx", "config.json", "a/_c-1").size == 3
    for path in ("../x", "/etc/x", "a/../b", "a//b", ".hidden", "a/.", "C:\\x", "a\\b", "x\n", "", "a/", "nul.", "ä"):
        with pytest.raises(ValueError, match="plain relative names are needed"):
            released(path)
    for pair in (("a", "a"), ("a", "A"), ("a", "a/b"), ("A/b", "a")):
        with pytest.raises(ValueError, match="two of them have the same path"):
            released(*pair)


def test_public_keys_are_shown_as_hex(world: World) -> None:
    root = world.registry.roots()[0]
    key = load_key("root", world.folder / "keys", root.signers("root").keys)
    assert public_hex(key) == world.pinned
