"""Devices: what they install, what they reject, and the keys that they trust, with a store in a folder."""

from __future__ import annotations

import base64
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.world import World
from tinymusician.artifacts.installation import Installation
from tinymusician.artifacts.keys import load_key
from tinymusician.artifacts.pull import PullClient
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.release import latest_key
from tinymusician.artifacts.sources import FolderSource
from tinymusician.artifacts.store import LocalStore
from tinymusician.errors import KeyFileError, StoreError, UntrustedError


class TestDevice:
    def test_install_update_and_nothing_new(self, world: World) -> None:
        world.registry.release(world.made(decoder="one", codec="same"), "stable", {})
        offer = world.client().check()
        assert (offer.is_new, offer.missing) == (True, 7)
        assert world.client().pull().release.version == 1
        assert world.playing() == {"decoder": "one", "codec": "same"}
        assert not world.client().check().is_new

        world.registry.release(world.made(decoder="two!", codec="same"), "stable", {})
        outputs: list[tuple[str, int, int]] = []
        version = world.client().pull(lambda *words: outputs.append(words))
        assert version.release.version == 2
        assert outputs[-1] == ("decoder", 4, 4), "the codec was there"
        assert world.playing()["decoder"] == "two!"
        assert len(list((world.folder / "device" / "versions").iterdir())) == 2, "the one before stays"
        world.registry.release(world.made(decoder="three"), "stable", {})
        world.client().pull()
        assert len(list((world.folder / "device" / "versions").iterdir())) == 2
        assert len(list((world.folder / "device" / "blobs").iterdir())) == 3

    def test_a_rollback_is_a_new_version_with_old_content(self, world: World) -> None:
        first = world.registry.release(world.made(decoder="one"), "stable", {})
        world.registry.release(world.made(decoder="two"), "stable", {})
        world.client().pull()
        back = world.registry.move(first, "stable", {"reason": "it hissed"})
        assert back.version == 3
        world.client().pull()
        assert world.playing() == {"decoder": "one"}
        assert [one.version for one in world.registry.history("band", "stable")] == [1, 2, 3]

    def test_what_a_killed_process_left_does_not_double_the_space(self, world: World) -> None:
        """In a container, process numbers repeat."""
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        (world.folder / "device" / f".link-{os.getpid()}").touch()
        assert world.client().installation.can_link()

    def test_damaged_installation_is_repaired(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        version = world.client().pull()
        world.registry.release(world.made(decoder="two"), "stable", {})
        world.client().pull()
        place = world.folder / "device" / world.client().check().version.folder
        (place / "decoder").unlink()
        result = world.client().installation.usable()
        assert result is not None
        assert result[0] == version, "the one before is used"
        world.client().pull()
        assert world.playing() == {"decoder": "two"}

    def test_damage_of_equal_size_is_repaired(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        version = world.client().pull()
        place = world.folder / "device" / version.folder / "decoder"
        place.chmod(0o644)
        place.write_text("eno")
        assert world.client().installation.usable() is None
        world.client().pull()
        assert world.playing() == {"decoder": "one"}

    def test_damage_that_two_versions_share_is_repaired_in_both(self, world: World) -> None:
        world.registry.release(world.made(decoder="one", codec="same"), "stable", {})
        first = world.client().pull()
        world.registry.release(world.made(decoder="two", codec="same"), "stable", {})
        second = world.client().pull()
        shared = world.folder / "device" / second.folder / "codec"
        shared.chmod(0o644)
        shared.write_text("emas")
        installation = world.client().installation
        assert installation.usable() is None
        world.client().pull()
        assert world.playing() == {"decoder": "two", "codec": "same"}
        record = installation.record()
        assert record is not None
        assert record.previous == first
        assert installation.is_complete(first)

    def test_damaged_version_does_not_become_the_previous_one(self, world: World) -> None:
        first = world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        world.registry.release(world.made(decoder="two"), "stable", {})
        version = world.client().pull()
        (world.folder / "device" / version.folder / "decoder").unlink()
        (world.folder / "device" / "blobs" / version.release.files[0].sha256).unlink()
        world.registry.release(world.made(decoder="three"), "stable", {})
        world.client().pull()
        record = world.client().installation.record()
        assert record is not None
        assert record.previous is not None
        assert record.previous.release == first

    def test_partial_files_of_another_release_are_removed(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        partial = world.folder / "device" / "partial"
        partial.mkdir(parents=True)
        (partial / ("0" * 64)).write_bytes(b"x" * 1000)
        outputs: list[tuple[str, int, int]] = []
        world.client().pull(lambda *words: outputs.append(words))
        assert outputs[-1] == ("decoder", 3, 3)
        assert not list(partial.iterdir())

    def test_several_at_once(self, world: World) -> None:
        world.registry.release(world.made(**{f"file{n}": str(n) * 10_000 for n in range(8)}), "stable", {})
        result: list[Any] = []
        threads = [threading.Thread(target=lambda: result.append(world.client().pull())) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(result) == 6
        assert len({one.digest for one in result}) == 1
        assert len(world.playing()) == 8

    def test_a_full_disk(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        world.registry.release(world.made(decoder="two"), "stable", {})
        monkeypatch.setattr("tinymusician.artifacts.pull.RESERVE", 1 << 60)
        with pytest.raises(StoreError, match=r"MB are free, and 1152921504607 MB are needed"):
            world.client().pull()
        assert world.playing() == {"decoder": "one"}


class TestRefused:
    def refused(self, world: World, message: str, **client: Any) -> None:
        before = Installation(world.folder / "device").usable()
        with pytest.raises(UntrustedError, match=message):
            world.client(**client).pull()
        assert Installation(world.folder / "device").usable() == before

    def test_release_of_another_alias(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "candidate", {})
        stolen = world.store.get(latest_key("band", "candidate"))
        world.store.put(latest_key("band", "stable"), stolen)
        self.refused(world, "the source has band@candidate in its place")

    def test_replayed_older_release(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        old = world.store.get(latest_key("band", "stable"))
        world.registry.release(world.made(decoder="two"), "stable", {})
        world.client().pull()
        world.store.put(latest_key("band", "stable"), old)
        self.refused(world, "version 1 is offered, and 2 was installed")

    def test_older_release_after_another_alias(self, world: World) -> None:
        """Asking for something else in between does not make a device forget."""
        world.registry.release(world.made(decoder="one"), "stable", {})
        old = world.store.get(latest_key("band", "stable"))
        world.registry.release(world.made(decoder="two"), "stable", {})
        world.registry.release(world.made(decoder="three"), "candidate", {})
        world.client().pull()
        world.client("band@candidate").pull()
        world.store.put(latest_key("band", "stable"), old)
        self.refused(world, "version 1 is offered, and 2 was installed")

    def test_expired(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {}, days=10)
        world.later(11)
        self.refused(world, "expired on 2030-01-11; its publisher must promote it again")
        world.registry.renew()
        world.client().pull()
        world.later(400)
        self.refused(world, "root document 1: expired on 2031-01-01")

    def test_clock_set_back(self, world: World) -> None:
        """The present is not before the latest date that a trusted document bears."""
        world.registry.release(world.made(decoder="one"), "candidate", {}, days=10)
        world.later(30)
        world.registry.release(world.made(decoder="two"), "stable", {})
        world.client().pull()
        world.later(-30)
        self.refused(world, "band@candidate, version 1: expired", reference="band@candidate")

    def test_replaced_key(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        old = world.store.get(latest_key("band", "stable"))
        world.registry.rotate("release")
        assert world.client().pull().release.version == 2, "signed again"
        world.store.put(latest_key("band", "stable"), old)
        self.refused(world, "signed by [0-9a-f]{12}, and trusted are")

    def test_revoked_key_signs_no_new_release(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        stolen = world.release_key()
        evil = world.registry.newest("band", "stable").model_copy(update={"version": 99})
        world.registry.rotate("release", revoke=True)
        world.offer(evil, stolen)
        with pytest.raises(UntrustedError, match="signed by"):
            world.client().pull()
        assert world.client().installation.usable() is None, "what the key signed before is dropped"

    def test_another_root(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        self.refused(world, "none is signed by the root key abababababab", pinned="ab" * 32)
        self.refused(world, "root key 'zz': 64 or 130 hexadecimal digits are needed", pinned="zz")
        world.client().pull()
        self.refused(world, "was set up with another root key", pinned="ab" * 32)
        with pytest.raises(UntrustedError, match="has no root key yet"):
            PullClient("band@stable", world.folder / "other", [])

    def test_equal_version_with_other_content(self, world: World) -> None:
        release = world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        key = world.release_key()
        other = release.model_copy(update={"licence": "another"})
        world.offer(other, key)
        self.refused(world, "version 1 is offered with other content than installed")

    def test_a_revocation_is_remembered(self, world: World) -> None:
        """Whoever holds the stolen key, and withholds the root document that revoked it, is refused all the same."""
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        stolen = world.release_key()
        evil = world.registry.newest("band", "stable").model_copy(update={"version": 99})
        world.registry.rotate("release", revoke=True)
        with pytest.raises(UntrustedError, match="signed by"):
            world.client().pull()
        world.store.delete("keys/root-000002.json")
        world.offer(evil, stolen)
        self.refused(world, "signed by")

    def test_outdated_mirror_is_ignored(self, world: World, tmp_path: Path) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        stale = LocalStore(tmp_path / "stale")
        for entry in world.store.list(""):
            stale.put(entry.key, world.store.get(entry.key))
        stolen = world.release_key()
        evil = world.registry.newest("band", "stable").model_copy(update={"version": 99})
        world.offer(evil, stolen, stale)
        world.registry.rotate("release")
        sources = [FolderSource(tmp_path / "stale"), FolderSource(world.folder / "store")]
        assert world.client(sources=sources).pull().release.version == 2

    def test_publisher_with_a_wrong_clock(self, world: World) -> None:
        """A date of thirty years from now makes nothing else old."""
        world.later(365 * 30)
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.later(-365 * 30)
        world.client().pull()
        world.registry.release(world.made(decoder="two"), "stable", {})
        world.client().pull()
        assert world.playing() == {"decoder": "two"}

    def test_highest_version_by_a_stolen_key(self, world: World) -> None:
        """Devices that took it go on once the key is revoked."""
        world.registry.release(world.made(decoder="one"), "stable", {})
        good = world.registry.newest("band", "stable")
        stolen = world.release_key()
        evil = good.model_copy(update={"version": (1 << 53) - 1})
        world.offer(evil, stolen)
        world.client().pull()
        world.registry.rotate("release", revoke=True)
        world.registry.release(world.made(decoder="two"), "stable", {})
        world.client().pull()
        assert world.playing() == {"decoder": "two"}


class TestRoots:
    def test_app_with_a_newer_root_key(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.registry.rotate("root")
        newest = world.registry.rotate("root").public_keys("root")[0]
        assert newest != world.pinned
        assert world.client(pinned=newest).pull().release.version == 3
        assert world.client(pinned=None).installation.usable() is not None

    def test_app_updated_to_the_new_root_key(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        newest = world.registry.rotate("root").public_keys("root")[0]
        assert world.client(pinned=newest).pull().release.version == 2
        assert world.client(pinned=newest).check().is_new is False

    def test_any_successor_root_key_is_accepted(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        second, third = (
            world.registry.rotate("root").public_keys("root")[0],
            world.registry.rotate("root").public_keys("root")[0],
        )
        world.client().pull()
        for pinned in (second, world.pinned, third, second):
            assert world.client(pinned=pinned).pull().release.version == 3

    def test_junk_before_the_pinned_key_and_a_hostile_mirror(self, world: World, tmp_path: Path) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        newest = world.registry.rotate("root").public_keys("root")[0]
        bad = tmp_path / "bad" / "keys"
        bad.mkdir(parents=True)
        payload = base64.b64encode(b'{"root":5}').decode()
        envelope = {"payload": payload, "payloadType": "x", "signatures": [{"keyid": "", "sig": ""}]}
        (bad / "root-000001.json").write_text(json.dumps(envelope))
        (bad / "root-000002.json").write_text("junk")
        sources = [FolderSource(tmp_path / "bad"), FolderSource(world.folder / "store")]
        world.store.put("keys/root-000001.json", b"junk")
        assert world.client(pinned=newest, sources=sources).pull().release.version == 2

    def test_valid_document_before_an_invalid_one_is_used(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        world.registry.rotate("release")
        world.store.put("keys/root-000003.json", b"junk")
        with pytest.raises(UntrustedError, match="root document 3: is not a signed document"):
            world.client().pull()
        assert world.client().installation.record().root.version == 2  # type: ignore[union-attr]

    def test_long_use_of_the_same_keys(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {}, days=400)
        world.later(366)
        with pytest.raises(UntrustedError, match="`tmctl signing-keys renew`"):
            world.client().pull()
        before = world.registry.roots()[-1]
        after = world.registry.extend()
        assert (after.version, after.keys, after.roles) == (2, before.keys, before.roles)
        assert world.client().pull().release.version == 1

    def test_device_follows_every_key_rotation(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        for role in ("root", "release", "root"):
            world.registry.rotate(role)  # type: ignore[arg-type]
        assert [root.version for root in world.registry.roots()] == [1, 2, 3, 4]
        assert world.client().pull().release.version == 4
        assert world.client().installation.record().root.version == 4  # type: ignore[union-attr]

    def test_root_chain_with_a_foreign_document(self, world: World, tmp_path: Path) -> None:
        thief = ReleaseRegistry(LocalStore(tmp_path / "thiefs"), tmp_path / "thiefs-keys", world.clock)
        thief.create()
        thief.rotate("root")
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.store.put("keys/root-000002.json", thief.store.get("keys/root-000002.json"))
        with pytest.raises(UntrustedError, match="root document 2: signed by"):
            world.client().pull()

    def test_root_history_cannot_be_truncated(self, world: World) -> None:
        """A device that knows version 2 takes nothing that only version 1 allows."""
        world.registry.release(world.made(decoder="one"), "stable", {})
        old = world.store.get(latest_key("band", "stable"))
        world.registry.rotate("release")
        world.client().pull()
        world.store.delete("keys/root-000002.json")
        world.store.put(latest_key("band", "stable"), old)
        with pytest.raises(UntrustedError, match="signed by"):
            world.client().pull()

    def test_key_files(self, world: World, tmp_path: Path) -> None:
        folder, trusted = world.folder / "keys", world.registry.roots()[-1].signers("release").keys
        assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
        (path,) = folder.glob("release-*.pem")
        path.chmod(0o640)
        with pytest.raises(KeyFileError, match=r"others can read it \(mode 640\); `chmod 600"):
            load_key("release", folder, trusted)
        path.chmod(0o600)
        os.replace(next(folder.glob("root-*.pem")), path)
        with pytest.raises(KeyFileError, match="contains another key than its name says"):
            load_key("release", folder, trusted)
        with pytest.raises(KeyFileError, match="the release key is not here"):
            load_key("release", tmp_path / "nowhere", trusted)
        with pytest.raises(KeyFileError, match="has keys already"):
            world.registry.create()
        private = [path.read_bytes() for path in folder.iterdir()]
        stored = [world.store.get(entry.key) for entry in world.store.list("")]
        assert not any(b"PRIVATE" in data or key in data for data in stored for key in private)
