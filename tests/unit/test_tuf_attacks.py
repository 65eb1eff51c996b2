"""The attacks that The Update Framework names (TUF 1.0.33, "Goals to protect against specific attacks"), one by one.

docs/tuf.md has the same rows. What is not here is in test_pull.py, and as vectors for other clients in vectors.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from serve.bundle_source import open_bundle_source
from serve.config import read_config
from tests.world import World
from tinymusician.artifacts.envelope import MAX_BYTES
from tinymusician.artifacts.installation import Installation
from tinymusician.artifacts.key_plan import KeyPlan
from tinymusician.artifacts.keys import load_key
from tinymusician.artifacts.pull import PullClient
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.release import latest_key
from tinymusician.artifacts.sources import FolderSource, RangeResponse
from tinymusician.artifacts.store import LocalStore
from tinymusician.artifacts.timestamp import timestamp_key
from tinymusician.artifacts.trust import MAX_SKIPPED, members_of, next_root, only, root_key, sign_root
from tinymusician.errors import KeyFileError, NotFoundError, StoreError, UntrustedError

TIMESTAMPED = KeyPlan(has_timestamp=True)


class Planned(World):
    """A publisher with another plan of keys."""

    def __init__(self, folder: Path, plan: KeyPlan) -> None:
        super().__init__(folder / "first")
        self.folder = folder
        self.store = LocalStore(folder / "store")
        self.registry = ReleaseRegistry(self.store, folder / "keys", self.clock)
        self.pinned = self.registry.create(plan).public_keys("root")[0]

    def document(self, version: int = 1) -> bytes:
        """The root document that an app carries."""
        return self.store.get(root_key(version))


@pytest.fixture
def stamped(tmp_path: Path) -> Planned:
    world = Planned(tmp_path, TIMESTAMPED)
    world.registry.release(world.made(decoder="one"), "stable", {})
    return world


class TestFreeze:
    """Whoever withholds new releases is noticed when the timestamp expires; what is installed is played for ever."""

    def test_timestamp_that_nobody_renews(self, stamped: Planned) -> None:
        stamped.client().pull()
        stamped.later(8)
        with pytest.raises(UntrustedError, match=r"timestamp of band@stable: expired .*withholds newer ones"):
            stamped.client().pull()
        assert stamped.playing() == {"decoder": "one"}
        stamped.registry.stamp(3)
        assert stamped.client().pull().release.version == 1
        stamped.later(4)
        with pytest.raises(UntrustedError, match="expired"):
            stamped.client().pull()

    def test_old_release_with_its_old_timestamp(self, stamped: Planned) -> None:
        """Both are still valid, so only what a device has seen protects it: it never goes back."""
        keys = (latest_key("band", "stable"), timestamp_key("band", "stable"))
        old = [stamped.store.get(key) for key in keys]
        stamped.registry.release(stamped.made(decoder="two"), "stable", {})
        stamped.client().pull()
        for key, data in zip(keys, old, strict=True):
            stamped.store.put(key, data)
        with pytest.raises(UntrustedError, match="version 1 is offered, and 2 was installed"):
            stamped.client().pull()

    def test_renewing_needs_no_release_key(self, stamped: Planned) -> None:
        for path in (*(stamped.folder / "keys").glob("release-*"), *(stamped.folder / "keys").glob("root-*")):
            path.unlink()
        stamped.later(5)
        (stamp,) = stamped.registry.stamp(30)
        assert (stamp.reference, stamp.version) == ("band@stable", 1)
        stamped.later(29)
        assert stamped.client().pull().release.version == 1
        with pytest.raises(KeyFileError, match="the release key is not here"):
            stamped.registry.release(stamped.made(decoder="two"), "stable", {})

    def test_a_publisher_without_the_timestamp_key(self, stamped: Planned) -> None:
        """A release counts when the job that has the key has confirmed it."""
        (path,) = (stamped.folder / "keys").glob("timestamp-*")
        moved = path.rename(stamped.folder / path.name)
        stamped.registry.release(stamped.made(decoder="two"), "stable", {})
        assert stamped.client().pull().release.version == 1, "the one that is confirmed"
        moved.rename(path)
        stamped.registry.stamp(7)
        assert stamped.client().pull().release.version == 2

    def test_removed_releases_are_not_confirmed(self, stamped: Planned) -> None:
        """The job that confirms reads the store, to which an attacker may write."""
        first = stamped.store.get(latest_key("band", "stable"))
        stamped.registry.release(stamped.made(decoder="two"), "stable", {})
        (second,) = [one.key for one in stamped.store.list("releases/band/stable/v00000002")]
        stamped.store.delete(second)
        (stamped.folder / "keys" / "released" / "band@stable.json").unlink()  # as on another machine
        with pytest.raises(UntrustedError, match=r"latest\.json is not version 1"):
            stamped.registry.stamp(7)
        stamped.store.put(latest_key("band", "stable"), first)
        with pytest.raises(UntrustedError, match=r"version 2 was confirmed, .* later releases were removed"):
            stamped.registry.stamp(7)

    def test_nothing_is_confirmed_that_cannot_be_recorded(self, stamped: Planned) -> None:
        place = timestamp_key("band", "stable")
        before, records = stamped.store.get(place), stamped.folder / "keys" / "released"
        shutil.rmtree(records)
        records.write_text("no folder")
        stamped.later(1)
        with pytest.raises(StoreError, match=r"released: cannot be written; TMCTL_RELEASE_RECORD names"):
            stamped.registry.stamp(7)
        assert stamped.store.get(place) == before

    def test_without_the_role_none_is_needed(self, world: World) -> None:
        with pytest.raises(KeyFileError, match="has no timestamp key, so none is needed"):
            world.registry.stamp(7)
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        world.registry.rotate("timestamp")
        assert world.client().pull().release.version == 2, "the rotation signed, and confirmed, it again"
        world.later(8)
        with pytest.raises(UntrustedError, match="timestamp"):
            world.client().pull()

    def test_a_new_pod_starts_until_the_release_expires(self, stamped: Planned) -> None:
        """Other pods play it anyway. A device that has it already takes nothing new."""
        stamped.later(89)
        with pytest.raises(UntrustedError, match="timestamp"):
            stamped.client().pull()
        assert stamped.client(start_despite_expiry=True).pull().release.version == 1
        with pytest.raises(UntrustedError, match="timestamp"):
            stamped.client(start_despite_expiry=True).pull()

    def test_a_new_pod_takes_no_expired_release(self, stamped: Planned) -> None:
        stamped.later(91)
        with pytest.raises(UntrustedError, match="release band@stable, version 1: expired"):
            stamped.client(start_despite_expiry=True).pull()

    def test_a_new_pod_with_an_expired_root_document(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {}, days=400)
        world.later(366)
        with pytest.raises(UntrustedError, match="root document 1: expired"):
            world.client().pull()
        assert world.client(start_despite_expiry=True).pull().release.version == 1


class TestKeyCompromise:
    """Below the threshold a thief gets nowhere; above it, revocation reaches what is installed."""

    def test_one_root_key_of_three_is_not_enough(self, tmp_path: Path) -> None:
        world = Planned(tmp_path, KeyPlan(root=3, root_threshold=2))
        world.registry.release(world.made(decoder="one"), "stable", {})
        client = world.client(pinned=None, root_document=world.document())
        assert client.pull().release.version == 1
        for path in list((tmp_path / "keys").glob("root-*"))[1:]:
            path.unlink()  # the thief has one
        with pytest.raises(KeyFileError, match="1 of the root keys are here, and 2 must sign"):
            world.registry.extend()

    def test_endpoint_starts_from_the_document(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A store that another publisher has written is refused, although each document in it is signed."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        world = Planned(tmp_path, KeyPlan(root=3, root_threshold=2))
        release = world.registry.release(world.made(decoder="one"), "stable", {})
        values = {"model": release.reference, "sources": (world.store.url,), "questions_model": None}
        document = read_config({**values, "root_document": world.document().decode()})
        assert open_bundle_source(document).check() is None
        other = Planned(tmp_path / "other", KeyPlan(root=3, root_threshold=2))
        other.registry.release(other.made(decoder="one"), "stable", {})
        elsewhere = document.model_copy(update={"sources": (other.store.url,)})
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
        with pytest.raises(StoreError):
            open_bundle_source(elsewhere).check()

    def test_app_that_knows_one_key_of_three(self, tmp_path: Path) -> None:
        """A thief of that key writes a document of their own; one that carries the document is not deceived."""
        world = Planned(tmp_path, KeyPlan(root=3, root_threshold=2))
        world.registry.release(world.made(decoder="one"), "stable", {})
        carried = world.document()
        stolen = load_key("root", tmp_path / "keys", world.registry.roots()[0].signers("root").keys)
        thief = World(tmp_path / "thief")
        content = thief.registry.roots()[0]
        members = members_of(content) | {"root": only(stolen)}
        thief.store.put(root_key(1), sign_root(next_root(None, members, thief.clock.now), [stolen]))
        sources = [FolderSource(tmp_path / "thief" / "store")]
        with pytest.raises(StoreError):
            world.client(pinned=None, root_document=carried, sources=sources).pull()
        record = world.client().installation.record()
        assert record is None or record.root == world.registry.roots()[0], "the thief's document is not taken"

    def test_two_release_keys_must_sign(self, tmp_path: Path) -> None:
        world = Planned(tmp_path, KeyPlan(release=2, release_threshold=2))
        good = world.registry.release(world.made(decoder="one"), "stable", {})
        assert world.client().pull().release == good
        world.offer(good.model_copy(update={"version": 2}), world.release_key())
        with pytest.raises(UntrustedError, match="2 trusted keys must sign it"):
            world.client().pull()
        assert world.registry.rotate("release").roles["release"].threshold == 2

    def test_keys_for_hardware(self, tmp_path: Path) -> None:
        world = Planned(tmp_path, KeyPlan(scheme="ecdsa-p256-sha256", has_timestamp=True))
        assert len(world.pinned) == 130
        world.registry.release(world.made(decoder="one"), "stable", {})
        assert world.client().pull().release.version == 1
        world.registry.rotate("root")
        assert {len(key) for key in world.registry.roots()[-1].public_keys("root")} == {130}
        assert world.client().pull().release.version == 2

    def test_what_a_revoked_key_signed_is_dropped(self, world: World) -> None:
        """Also as the version to fall back to, and without a new release; files are removed."""
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        world.registry.release(world.made(decoder="two"), "stable", {})
        world.client().pull()
        world.registry.rotate("release", revoke=True)
        with pytest.raises(UntrustedError, match="signed by"):
            world.client().pull()
        assert world.client().installation.usable() is None
        assert not list((world.folder / "device" / "versions").iterdir())
        again = world.registry.release(world.made(decoder="three"), "stable", {})
        assert (world.client().pull().release, world.playing()) == (again, {"decoder": "three"})

    def test_what_a_replaced_key_signed_is_played(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        world.registry.rotate("release")
        world.store.delete(latest_key("band", "stable"))
        with pytest.raises(NotFoundError):
            world.client().pull()
        assert world.playing() == {"decoder": "one"}


class TestEndlessData:
    """Documents are bounded in size and number, files in size."""

    class _Endless:
        """A source with root documents of other keys without end."""

        url = "https://endless.example"

        def __init__(self, document: bytes) -> None:
            self.document, self.reads = document, 0

        def read(self, key: str, most: int) -> bytes:
            if not key.startswith("keys/"):
                raise NotFoundError(key)
            self.reads += 1
            return self.document[:most]

        @contextmanager
        def open(self, key: str, start: int, tag: str) -> Iterator[RangeResponse]:
            yield RangeResponse(0, "", iter([self.read(key, MAX_BYTES)]))

    def test_root_documents_without_end(self, world: World) -> None:
        endless = self._Endless(json.dumps({"payload": "e30=", "payloadType": "x", "signatures": []}).encode())
        with pytest.raises(UntrustedError, match=f"none of the first {MAX_SKIPPED} has the root key"):
            world.client(sources=[endless]).pull()
        assert endless.reads == MAX_SKIPPED

    def test_an_app_that_carries_a_later_document_reads_no_earlier_ones(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        for _ in range(3):
            world.registry.rotate("root")
        carried = world.store.get(root_key(3))
        for version in (1, 2):
            world.store.delete(root_key(version))
        client = world.client(pinned=None, root_document=carried)
        assert client.pull().release.version == 4
        record = client.installation.record()
        assert record is not None
        assert record.root.version == 4


class TestRecovery:
    """ "Errors must not leave clients unrecoverable": a damaged record is set aside, and built again."""

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"spec": 3, "later": true}', '{"pinned": "ab"}'])
    def test_damaged_or_newer_record(self, world: World, content: str) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        record = world.folder / "device" / "installed.json"
        record.write_text(content)
        assert Installation(world.folder / "device").usable() is None
        with pytest.raises(UntrustedError, match="its record is damaged, and it has no root key yet"):
            PullClient("band@stable", world.folder / "device", [])
        outputs: list[tuple[str, int, int]] = []
        world.client().pull(lambda *words: outputs.append(words))
        assert world.playing() == {"decoder": "one"}
        assert outputs == [], "its files were found again"
        assert record.with_name("installed.json.damaged").read_text() == content

    def test_fields_of_a_later_version_in_the_record(self, world: World) -> None:
        world.registry.release(world.made(decoder="one"), "stable", {})
        world.client().pull()
        record = world.folder / "device" / "installed.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "later": {"a": 1}}))
        assert world.playing() == {"decoder": "one"}

    def test_mirror_that_writes_the_envelope_in_another_way(self, world: World) -> None:
        """It needs no key for that. The device updates from honest sources, and repairs itself, all the same."""
        world.registry.release(world.made(decoder="one"), "stable", {})
        honest = world.store.get(latest_key("band", "stable"))
        world.store.put(latest_key("band", "stable"), json.dumps(json.loads(honest), indent=3).encode())
        world.client().pull()
        world.store.put(latest_key("band", "stable"), honest)
        assert not world.client().check().is_new
        (blob,) = (world.folder / "device" / "blobs").iterdir()
        blob.chmod(0o644)
        blob.write_text("???")
        world.client().pull()
        assert world.playing() == {"decoder": "one"}


def test_clock_that_is_wrong_by_a_day(stamped: Planned) -> None:
    """A device's clock that is behind accepts what is dated ahead of it, and forgets nothing that it has seen."""
    stamped.later(6)
    stamped.registry.stamp(7)
    stamped.clock.now -= timedelta(days=1)
    assert stamped.client().pull().release.version == 1


def test_dates_of_expiry_for_monitoring(stamped: Planned) -> None:
    """The endpoint exports these dates; they are those of the documents that were checked last."""
    client = stamped.client()
    client.pull()
    days = {document: (date - stamped.clock.now).days for document, date in client.expiries.items()}
    assert days == {"root": 365, "release": 90, "timestamp": 7}
    stamped.later(5)
    stamped.registry.stamp(3)
    client.check()
    days = {document: (date - stamped.clock.now).days for document, date in client.expiries.items()}
    assert days == {"root": 360, "release": 85, "timestamp": 3}
