"""Artifacts round-trip byte for byte, and damage is detected."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tinymusician.artifacts.attestations import ArtifactAttestation, attest
from tinymusician.artifacts.blobs import blob_key
from tinymusician.artifacts.manifest import Manifest, fetch, find, list_manifests, publish, verify
from tinymusician.artifacts.store import LocalStore
from tinymusician.errors import DigestMismatchError, NotFoundError, StoreError, UntrustedError

FACTS = {"kind": "student", "recipe": {"name": "x"}, "lineage": {"run": "r"}, "metrics": {"kl": 0.5}, "licence": "none"}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def folder(path: Path, text: str) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "config.json").write_text(text)
    (path / "sub" / "weights").write_bytes(b"\0\1" * 100)
    return path


def test_round_trip(store: LocalStore, tmp_path: Path) -> None:
    made = publish(store, folder(tmp_path / "in", "one"), name="model", **FACTS)
    result = find(store, made.reference)
    assert result == made
    assert [file.path for file in result.files] == ["config.json", "sub/weights"]
    assert result.size == 203
    fetch(store, result, tmp_path / "out")
    for name in ("config.json", "sub/weights"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
    assert verify(store, result, tmp_path) == []


def test_the_newest_of_a_name(store: LocalStore, tmp_path: Path) -> None:
    first = publish(store, folder(tmp_path / "1", "one"), name="model", **FACTS)
    newer = first.model_copy(update={"created": first.created.replace(year=first.created.year + 1)})
    store.put(f"artifacts/model/{newer.digest}.json", newer.canonical())
    with pytest.raises(UntrustedError, match=r"2 in .*which is the newest is not certain: .* names one: model@"):
        find(store, "model")
    for manifest, day in ((first, 2), (newer, 1)):
        attest(store, ArtifactAttestation(artifact=manifest.reference, created=datetime(2030, 1, day, tzinfo=UTC)))
    assert find(store, "model") == first, "the driver's date counts, not the manifest's"
    assert find(store, f"model@sha256:{newer.digest}") == newer
    assert find(store, f"model@sha256:{first.digest[:8]}") == first
    warnings: list[str] = []
    assert list_manifests(store, warnings.append) == [first, newer]
    assert warnings == []
    store.put("artifacts/other/00.json", b"{}")
    assert list_manifests(store, warnings.append) == [first, newer], "one that is damaged hides no other"
    assert len(warnings) == 1


def test_shared_files_are_stored_once(store: LocalStore, tmp_path: Path) -> None:
    publish(store, folder(tmp_path / "1", "one"), name="a", **FACTS)
    publish(store, folder(tmp_path / "2", "two"), name="b", **FACTS)
    assert len(list(store.list("blobs/"))) == 3


def test_the_digest_is_of_canonical_json(store: LocalStore, tmp_path: Path) -> None:
    made = publish(store, folder(tmp_path / "in", "one"), name="model", **FACTS)
    content = json.loads(made.canonical())
    again = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert again == made.canonical()
    assert Manifest.model_validate(content).digest == made.digest


def test_damage_is_named(store: LocalStore, tmp_path: Path) -> None:
    made = publish(store, folder(tmp_path / "in", "one"), name="model", **FACTS)
    store.put(blob_key(made.files[0].sha256), b"two")
    store.delete(blob_key(made.files[1].sha256))
    problems = verify(store, made, tmp_path)
    assert [problem.split(":")[0] for problem in problems] == ["config.json", "sub/weights"]
    with pytest.raises(DigestMismatchError):
        fetch(store, made, tmp_path / "out")
    with pytest.raises(StoreError, match="cannot be written"):
        fetch(store, made, tmp_path / "in" / "config.json")
    assert not (tmp_path / "out" / "config.json").exists()
    store.put(f"artifacts/model/{made.digest}.json", made.canonical().replace(b'"none"', b'"free"'))
    with pytest.raises(DigestMismatchError, match="does not hold the manifest"):
        find(store, made.reference)


def test_references(store: LocalStore) -> None:
    with pytest.raises(NotFoundError, match="tmctl artifacts list"):
        find(store, "nothing")
    for bad in ("Model", "model\n", "a@b", "a@sha256:xyz", "../a"):
        with pytest.raises(StoreError, match="NAME@sha256:DIGEST"):
            find(store, bad)


def test_symbolic_link_is_not_published(store: LocalStore, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "model").symlink_to("/etc/hostname")
    with pytest.raises(StoreError, match="model is a link; put the file itself there"):
        publish(store, folder, name="band", kind="student", recipe={}, lineage={}, metrics={}, licence="x")
    assert list(store.list("")) == []


def test_a_bundle_has_the_digest_that_devices_show(store: LocalStore, tmp_path: Path) -> None:
    """That of its own manifest.json; the artifact is found by it too."""
    content = b'{"files": []}'
    place = folder(tmp_path / "in", "one")
    (place / "manifest.json").write_bytes(content)
    made = publish(store, place, name="model-bundle", **{**FACTS, "kind": "bundle"})
    expected = hashlib.sha256(content).hexdigest()
    assert made.bundle_digest == expected
    for name in (expected, expected[:12]):
        with pytest.raises(UntrustedError, match="All 64 digits of its digest name it without"):
            find(store, f"model-bundle@sha256:{name}")
    attest(store, ArtifactAttestation(artifact=made.reference, created=made.created))
    assert find(store, f"model-bundle@sha256:{expected[:12]}") == made
    assert find(store, made.reference) == made
    with pytest.raises(NotFoundError, match="not in"):
        find(store, "model-bundle@sha256:" + "0" * 12)
    student = publish(store, folder(tmp_path / "student", "one"), name="model", **FACTS)
    assert student.bundle_digest is None
