"""A publisher with a store and keys, and a device, with simulated clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tinymusician.artifacts.attestations import ArtifactAttestation, attest
from tinymusician.artifacts.envelope import payload_sha256, seal
from tinymusician.artifacts.keys import load_key
from tinymusician.artifacts.manifest import Manifest, publish
from tinymusician.artifacts.pull import PullClient
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.release import KIND, Release, latest_key
from tinymusician.artifacts.sources import FolderSource
from tinymusician.artifacts.store import LocalStore

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
        self.registry = ReleaseRegistry(self.store, folder / "keys", self.clock)
        self.pinned = self.registry.create().public_keys("root")[0]

    def made(self, **files: str) -> Manifest:
        """A bundle of a job whose driver attests it."""
        place = self.folder / f"made-{len(list(self.folder.glob('made-*')))}"
        place.mkdir()
        for name, content in files.items():
            (place / name).write_text(content)
        facts: dict[str, Any] = {"recipe": {}, "lineage": {}, "metrics": {}, "licence": "Apache-2.0"}
        made = publish(self.store, place, name="band", kind="bundle", **facts)
        attest(self.store, ArtifactAttestation(artifact=made.reference, created=made.created))
        return made

    def client(self, reference: str = "band@stable", **more: Any) -> PullClient:
        sources = more.pop("sources", [FolderSource(self.folder / "store")])
        pinned = more.pop("pinned", self.pinned)
        return PullClient(reference, self.folder / "device", sources, pinned, self.clock, **more)

    def later(self, days: float) -> None:
        self.clock.now += timedelta(days=days)

    def playing(self) -> dict[str, str]:
        version = self.client().installation.usable()
        assert version is not None
        return {path.name: path.read_text() for path in version[1].iterdir()}

    def release_key(self) -> Ed25519PrivateKey:
        """The key that signs releases now; in other hands, a stolen one."""
        return load_key("release", self.folder / "keys", self.registry.roots()[-1].signers("release").keys)

    def offer(self, release: Release, key: Ed25519PrivateKey, mirror: LocalStore | None = None) -> None:
        """Replace the newest release, as an attacker with a key could."""
        data = seal(KIND, release.model_dump(mode="json"), [key])
        (mirror or self.store).put(latest_key(release.name, release.alias), data)

    def leave(self, release: Release, key: Ed25519PrivateKey) -> None:
        """Add a release under the right name, as an attacker with a key could."""
        data = seal(KIND, release.model_dump(mode="json"), [key])
        name = f"v{release.version:08}-{payload_sha256(data, 'release')[:12]}"
        self.store.put(f"releases/{release.name}/{release.alias}/{name}.json", data)
