"""Keys, root documents, releases and a device's folder, all over a store in a folder."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tinymusician.artifacts import registry as registries
from tinymusician.artifacts.envelope import seal
from tinymusician.artifacts.installation import Installation
from tinymusician.artifacts.keys import load_key, public_hex
from tinymusician.artifacts.manifest import Manifest, publish
from tinymusician.artifacts.pull import Client
from tinymusician.artifacts.registry import Registry
from tinymusician.artifacts.release import KIND, Release, latest_key
from tinymusician.artifacts.sources import FolderSource
from tinymusician.artifacts.store import LocalStore
from tinymusician.artifacts.trust import Root, sealed_root
from tinymusician.errors import KeyFileError, NotFound, Refused, StoreError

START = datetime(2030, 1, 1, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


class World:
    """A publisher with a store, and a device."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, Clock()
        self.store = LocalStore(folder / "store")
        self.registry = Registry(self.store, folder / "keys", self.clock)
        self.pinned = self.registry.create().root[0]

    def made(self, **files: str) -> Manifest:
        place = self.folder / f"made-{len(list(self.folder.glob('made-*')))}"
        place.mkdir()
        for name, content in files.items():
            (place / name).write_text(content)
        facts: dict[str, Any] = {"recipe": {}, "lineage": {}, "metrics": {}, "licence": "Apache-2.0"}
        return publish(self.store, place, name="band", kind="bundle", **facts)

    def client(self, reference: str = "band@stable", **more: Any) -> Client:
        sources = more.pop("sources", [FolderSource(self.folder / "store")])
        return Client(reference, self.folder / "device", sources, more.pop("pinned", self.pinned), self.clock)

    def later(self, days: float) -> None:
        self.clock.now += timedelta(days=days)

    def playing(self) -> dict[str, str]:
        found = self.client().installation.usable()
        assert found is not None
        return {path.name: path.read_text() for path in found[1].iterdir()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class TestDevice:
    def test_install_update_and_nothing_new(self, world: World) -> None:
        world.registry.release(world.made(decoder="one", codec="same"), "stable", {})
        offer = world.client().check()
        assert (offer.is_new, offer.missing) == (True, 7)
        assert world.client().pull().release.version == 1
        assert world.playing() == {"decoder": "one", "codec": "same"}
        assert not world.client().check().is_new

        world.registry.release(world.made(decoder="two!", codec="same"), "stable", {})
        heard: list[tuple[str, int, int]] = []
        version = world.client().pull(lambda *words: heard.append(words))
        assert version.release.version == 2
        assert heard[-1] == ("decoder", 4, 4), "the codec was there"
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

    def test_damage_on_the_device_is_mended(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        version = world.client().pull()
        world.registry.release(world.made(decoder="two"), "stable", {})
        world.client().pull()
        place = world.folder / "device" / world.client().check().version.folder
        (place / "decoder").unlink()
        found = world.client().installation.usable()
        assert found is not None
        assert found[0] == version, "the one before is used"
        world.client().pull()
        assert world.playing() == {"decoder": "two"}

    def test_damage_that_keeps_the_size_is_mended(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        version = world.client().pull()
        place = world.folder / "device" / version.folder / "decoder"
        place.chmod(0o644)
        place.write_text("eno")
        assert world.client().installation.usable() is None
        world.client().pull()
        assert world.playing() == {"decoder": "one"}

    def test_what_is_damaged_is_not_kept_as_the_one_before(self, world: World) -> None:
        first = world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        world.registry.release(world.made(decoder="two"), "stable", {})
        version = world.client().pull()
        (world.folder / "device" / version.folder / "decoder").unlink()
        world.registry.release(world.made(decoder="three"), "stable", {})
        world.client().pull()
        record = world.client().installation.record()
        assert record is not None
        assert record.previous is not None
        assert record.previous.release == first

    def test_what_arrived_of_another_release_takes_no_room(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        partial = world.folder / "device" / "partial"
        partial.mkdir(parents=True)
        (partial / ("0" * 64)).write_bytes(b"x" * 1000)
        heard: list[tuple[str, int, int]] = []
        world.client().pull(lambda *words: heard.append(words))
        assert heard[-1] == ("decoder", 3, 3)
        assert not list(partial.iterdir())

    def test_several_at_once(self, world: World) -> None:
        world.registry.release(world.made(**{f"file{n}": str(n) * 10_000 for n in range(8)}), "stable", {})
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(world.client().pull())) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 6
        assert len({one.digest for one in found}) == 1
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
        with pytest.raises(Refused, match=message):
            world.client(**client).pull()
        assert Installation(world.folder / "device").usable() == before

    def test_another_alias_in_its_place(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "candidate", {})
        stolen = world.store.get(latest_key("band", "candidate"))
        world.store.put(latest_key("band", "stable"), stolen)
        self.refused(world, "what lies there is band@candidate; somebody put it in its place")

    def test_a_replayed_older_release(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        old = world.store.get(latest_key("band", "stable"))
        world.registry.release(world.made(decoder="two"), "stable", {})
        world.client().pull()
        world.store.put(latest_key("band", "stable"), old)
        self.refused(world, "version 1 is offered, and 2 was installed")

    def test_an_older_one_after_another_alias(self, world: World) -> None:
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

    def test_a_clock_that_was_set_back(self, world: World) -> None:
        """The present is not before the latest date that a trusted document bears."""
        world.registry.release(world.made(decoder="one"), "candidate", {}, days=10)
        world.later(30)
        world.registry.release(world.made(decoder="two"), "stable", {})
        world.client().pull()
        world.later(-30)
        self.refused(world, "band@candidate, version 1: expired", reference="band@candidate")

    def test_a_key_that_was_replaced(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        old = world.store.get(latest_key("band", "stable"))
        world.registry.rotate("release")
        assert world.client().pull().release.version == 2, "signed anew"
        world.store.put(latest_key("band", "stable"), old)
        self.refused(world, "signed by [0-9a-f]{12}, and trusted are")

    def test_a_stolen_key_signs_nothing_after_it_was_revoked(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        stolen = load_key("release", world.folder / "keys", world.registry.roots()[-1].release_keys)
        evil = world.registry.newest("band", "stable").model_copy(update={"version": 99})
        world.registry.rotate("release", revoke=True)
        world.store.put(latest_key("band", "stable"), seal(KIND, evil.model_dump(mode="json"), [stolen]))
        self.refused(world, "signed by")
        assert world.playing() == {"decoder": "one"}

    def test_another_root(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        self.refused(world, "none is signed by the root key abababababab", pinned="ab" * 32)
        self.refused(world, "root key 'zz': 64 hexadecimal digits are needed", pinned="zz")
        world.client().pull()
        self.refused(world, "was set up with another root key", pinned="ab" * 32)
        with pytest.raises(Refused, match="knows no root key yet"):
            Client("band@stable", world.folder / "other", [])

    def test_equal_version_with_other_content(self, world: World) -> None:
        release = world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        key = load_key("release", world.folder / "keys", world.registry.roots()[-1].release_keys)
        other = release.model_copy(update={"licence": "another"})
        world.store.put(latest_key("band", "stable"), seal(KIND, other.model_dump(mode="json"), [key]))
        self.refused(world, "version 1 is offered with other content than installed")

    def test_a_revocation_is_remembered(self, world: World) -> None:
        """Whoever holds the stolen key, and withholds the root document that revoked it, is refused all the same."""
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        stolen = load_key("release", world.folder / "keys", world.registry.roots()[-1].release_keys)
        evil = world.registry.newest("band", "stable").model_copy(update={"version": 99})
        world.registry.rotate("release", revoke=True)
        self.refused(world, "signed by")
        world.store.delete("keys/root-000002.json")
        world.store.put(latest_key("band", "stable"), seal(KIND, evil.model_dump(mode="json"), [stolen]))
        self.refused(world, "signed by")

    def test_a_mirror_that_stayed_behind_does_not_outbid_the_others(self, world: World, tmp_path: Path) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        stale = LocalStore(tmp_path / "stale")
        for entry in world.store.list(""):
            stale.put(entry.key, world.store.get(entry.key))
        stolen = load_key("release", world.folder / "keys", world.registry.roots()[-1].release_keys)
        evil = world.registry.newest("band", "stable").model_copy(update={"version": 99})
        stale.put(latest_key("band", "stable"), seal(KIND, evil.model_dump(mode="json"), [stolen]))
        world.registry.rotate("release")
        sources = [FolderSource(tmp_path / "stale"), FolderSource(world.folder / "store")]
        assert world.client(sources=sources).pull().release.version == 2

    def test_a_publisher_whose_clock_was_wrong(self, world: World) -> None:
        """A date of thirty years from now makes nothing else old."""
        world.later(365 * 30)
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.later(-365 * 30)
        world.client().pull()
        world.registry.release(world.made(decoder="two"), "stable", {})
        world.client().pull()
        assert world.playing() == {"decoder": "two"}

    def test_the_highest_version_of_all_by_a_stolen_key(self, world: World) -> None:
        """Devices that took it go on once the key is revoked."""
        world.registry.release(world.made(decoder="one"), "stable", {})
        good = world.registry.newest("band", "stable")
        stolen = load_key("release", world.folder / "keys", world.registry.roots()[-1].release_keys)
        evil = good.model_copy(update={"version": (1 << 53) - 1})
        world.store.put(latest_key("band", "stable"), seal(KIND, evil.model_dump(mode="json"), [stolen]))
        world.client().pull()
        world.registry.rotate("release", revoke=True)
        world.registry.release(world.made(decoder="two"), "stable", {})
        world.client().pull()
        assert world.playing() == {"decoder": "two"}


class TestRoots:
    def test_an_app_that_was_built_after_the_root_key_was_replaced(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.registry.rotate("root")
        newest = world.registry.rotate("root").root[0]
        assert newest != world.pinned
        assert world.client(pinned=newest).pull().release.version == 3
        assert world.client(pinned=None).installation.usable() is not None

    def test_an_app_that_was_updated_with_the_new_root_key(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        newest = world.registry.rotate("root").root[0]
        assert world.client(pinned=newest).pull().release.version == 2
        assert world.client(pinned=newest).check().is_new is False

    def test_any_root_key_that_followed_will_do(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        second, third = world.registry.rotate("root").root[0], world.registry.rotate("root").root[0]
        world.client().pull()
        for pinned in (second, world.pinned, third, second):
            assert world.client(pinned=pinned).pull().release.version == 3

    def test_junk_before_the_own_key_and_a_hostile_mirror(self, world: World, tmp_path: Path) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        newest = world.registry.rotate("root").root[0]
        bad = tmp_path / "bad" / "keys"
        bad.mkdir(parents=True)
        payload = base64.b64encode(b'{"root":5}').decode()
        envelope = {"payload": payload, "payloadType": "x", "signatures": [{"keyid": "", "sig": ""}]}
        (bad / "root-000001.json").write_text(json.dumps(envelope))
        (bad / "root-000002.json").write_text("junk")
        sources = [FolderSource(tmp_path / "bad"), FolderSource(world.folder / "store")]
        world.store.put("keys/root-000001.json", b"junk")
        assert world.client(pinned=newest, sources=sources).pull().release.version == 2

    def test_a_good_document_before_a_bad_one_is_kept(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        world.registry.rotate("release")
        world.store.put("keys/root-000003.json", b"junk")
        with pytest.raises(Refused, match="root document 3: is no signed document"):
            world.client().pull()
        assert world.client().installation.record().root.version == 2  # type: ignore[union-attr]

    def test_another_year_with_the_same_keys(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {}, days=400)
        world.later(366)
        with pytest.raises(Refused, match="`tmctl keys renew`"):
            world.client().pull()
        before = world.registry.roots()[-1]
        after = world.registry.extend()
        assert (after.version, after.root, after.release) == (2, before.root, before.release)
        assert world.client().pull().release.version == 1

    def test_a_device_follows_every_rotation(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        for role in ("root", "release", "root"):
            world.registry.rotate(role)  # type: ignore[arg-type]
        assert [root.version for root in world.registry.roots()] == [1, 2, 3, 4]
        assert world.client().pull().release.version == 4
        assert world.client().installation.record().root.version == 4  # type: ignore[union-attr]

    def test_a_chain_with_a_foreign_link(self, world: World, tmp_path: Path) -> None:
        thief = Registry(LocalStore(tmp_path / "thiefs"), tmp_path / "thiefs-keys", world.clock)
        thief.create()
        thief.rotate("root")
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.store.put("keys/root-000002.json", thief.store.get("keys/root-000002.json"))
        with pytest.raises(Refused, match="root document 2: signed by"):
            world.client().pull()

    def test_a_root_cannot_be_shortened(self, world: World) -> None:
        """A device that knows version 2 takes nothing that only version 1 allows."""
        world.registry.release(world.made(decoder="one"), "stable", {})
        old = world.store.get(latest_key("band", "stable"))
        world.registry.rotate("release")
        world.client().pull()
        world.store.delete("keys/root-000002.json")
        world.store.put(latest_key("band", "stable"), old)
        with pytest.raises(Refused, match="signed by"):
            world.client().pull()

    def test_key_files(self, world: World, tmp_path: Path) -> None:
        folder, trusted = world.folder / "keys", world.registry.roots()[-1].release_keys
        assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
        (path,) = folder.glob("release-*.pem")
        path.chmod(0o640)
        with pytest.raises(KeyFileError, match=r"others can read it \(mode 640\); `chmod 600"):
            load_key("release", folder, trusted)
        path.chmod(0o600)
        os.replace(next(folder.glob("root-*.pem")), path)
        with pytest.raises(KeyFileError, match="holds another key than its name says"):
            load_key("release", folder, trusted)
        with pytest.raises(KeyFileError, match="the release key is not here"):
            load_key("release", tmp_path / "nowhere", trusted)
        with pytest.raises(KeyFileError, match="has keys already"):
            world.registry.create()
        private = [path.read_bytes() for path in folder.iterdir()]
        stored = [world.store.get(entry.key) for entry in world.store.list("")]
        assert not any(b"PRIVATE" in data or key in data for data in stored for key in private)


class TestPublishers:
    def test_root_documents_of_somebody_else(self, world: World, tmp_path: Path) -> None:
        """Who can write to the store puts a root of their own there, which trusts the genuine release key, too."""
        manifest = world.made(decoder="one")
        release = world.registry.release(manifest, "stable", {})
        genuine = world.store.get("keys/root-000001.json")
        thief = Registry(LocalStore(tmp_path / "thiefs"), tmp_path / "thiefs-keys", world.clock)
        first = thief.create()
        own = load_key("root", tmp_path / "thiefs-keys", _ids(first.root))
        second = Root.model_validate({**first.model_dump(), "version": 2, "release": world.registry.roots()[0].release})
        world.store.put("keys/root-000001.json", thief.store.get("keys/root-000001.json"))
        world.store.put("keys/root-000002.json", sealed_root(second, [own]))
        for act in (
            world.registry.renew,
            world.registry.roots,
            lambda: world.registry.release(manifest, "stable", {}),
            lambda: world.registry.move(release, "stable", {}),
            lambda: world.registry.rotate("release"),
        ):
            with pytest.raises(Refused, match="not those that were made with the keys of"):
                act()
        world.store.put("keys/root-000001.json", genuine)
        world.store.delete("keys/root-000002.json")
        assert [one.version for one in world.registry.renew()] == [2]

    def test_a_revocation_cannot_be_taken_out_of_the_store(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.registry.rotate("release", revoke=True)
        world.store.delete("keys/root-000002.json")
        with pytest.raises(Refused, match="not those that were made with the keys of"):
            world.registry.renew()

    def test_nothing_is_signed_without_the_pin(self, world: World) -> None:
        (world.folder / "keys" / "pin.json").unlink()
        with pytest.raises(KeyFileError, match=r"pin\.json is not here"):
            world.registry.release(world.made(decoder="one"), "stable", {})
        assert world.registry.roots()[0].root == (world.pinned,), "to look needs no keys"

    def test_numbers_that_are_too_large_are_text(self, world: World) -> None:
        release = world.registry.release(world.made(decoder="one"), "stable", {"seed": 1 << 60, "kl": 0.25})
        assert release.about == {"seed": str(1 << 60), "kl": "0.25"}
        with pytest.raises(Refused, match="cannot be written so that everybody reads the same"):
            world.registry.release(world.made(decoder="one"), "stable", {"größe": 1})

    def test_an_old_release_under_a_newer_name(self, world: World) -> None:
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

    def test_what_a_revoked_key_signed_is_not_signed_anew(self, world: World) -> None:
        manifest = world.made(decoder="one")
        good = world.registry.release(manifest, "stable", {})
        stolen = load_key("release", world.folder / "keys", world.registry.roots()[-1].release_keys)
        data = seal(KIND, good.model_copy(update={"version": 99}).model_dump(mode="json"), [stolen])
        world.store.put(f"releases/band/stable/v00000099-{hashlib.sha256(data).hexdigest()[:12]}.json", data)
        assert world.registry.newest("band", "stable").version == 99
        world.registry.rotate("release", revoke=True)
        assert world.registry.renew() == []
        with pytest.raises(NotFound, match="release band@stable: not in"):
            world.registry.newest("band", "stable")
        assert world.registry.release(manifest, "stable", {}).version == 1
        assert len(world.registry.history("band", "stable", revoked=True)) == 2, "of version 1 what was copied counts"

    def test_nothing_is_written_that_no_device_would_take(self, world: World) -> None:
        release = world.registry.release(world.made(decoder="one"), "candidate", {})
        with pytest.raises(Refused, match="alias: String should match pattern"):
            world.registry.move(release, "Stable", {})
        with pytest.raises(Refused, match="is larger than 1048576 bytes"):
            world.registry.move(release, "stable", {"reason": "x" * (1 << 20)})
        assert world.registry.aliases() == [("band", "candidate")]

    def test_files_that_are_gone_are_not_released_again(self, world: World) -> None:
        release = world.registry.release(world.made(decoder="one"), "stable", {})
        world.store.delete(f"blobs/sha256/{release.files[0].sha256}")
        with pytest.raises(StoreError, match="decoder is not in the store any more"):
            world.registry.move(release, "stable", {})

    @pytest.mark.parametrize("seed", range(4))
    def test_a_publisher_that_was_killed_before_it_withdrew(self, world: World, seed: int) -> None:
        """Two of one version lie there; the one that was copied counts, whatever their names."""
        first = world.registry.release(world.made(decoder=f"one {seed}"), "stable", {})
        key = load_key("release", world.folder / "keys", world.registry.roots()[-1].release_keys)
        data = seal(KIND, first.model_copy(update={"licence": f"unfinished {seed}"}).model_dump(mode="json"), [key])
        world.store.put(f"releases/band/stable/v00000001-{hashlib.sha256(data).hexdigest()[:12]}.json", data)
        assert world.registry.history("band", "stable") == [first]
        assert world.registry.renew()[0].licence == first.licence

    def test_two_at_once_lose_nothing(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registries, "_PAUSE", 0.002)
        manifests = [world.made(decoder=f"number {n}") for n in range(8)]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda manifest: world.registry.release(manifest, "stable", {}), manifests))
        found = world.registry.history("band", "stable")
        versions = [one.version for one in found]
        assert len(set(versions)) == 8
        assert {one.artifact for one in found} == {one.reference for one in manifests}
        world.client().pull()
        assert world.client().check().version.release == found[-1]


def test_files_that_would_leave_their_folder() -> None:
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
        with pytest.raises(ValueError, match="two of them fall on one place"):
            released(*pair)


def test_public_keys_are_shown_as_hex(world: World) -> None:
    root = world.registry.roots()[0]
    key = load_key("root", world.folder / "keys", [*_ids(root.root)])
    assert public_hex(key) == world.pinned


def _ids(publics: tuple[str, ...]) -> list[str]:
    from tinymusician.artifacts.trust import by_id

    return list(by_id(publics))
