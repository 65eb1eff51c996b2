"""The store's behaviour, the same over a local folder and over a real S3 server."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinymusician.artifacts.address import open_store
from tinymusician.artifacts.blobs import blob_key, digest_of, get_blob, put_blob
from tinymusician.artifacts.store import LocalStore, Store
from tinymusician.errors import Corrupt, NotFound, StoreError


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield LocalStore(tmp_path / "store")
    else:
        yield request.getfixturevalue("s3_store")


def test_put_get_list_delete(store: Store) -> None:
    assert not store.exists("a/b")
    store.put("a/b", b"one")
    store.put("a/c", b"three")
    store.put("a/b", b"two!")
    assert store.get("a/b") == b"two!"
    assert [(entry.key, entry.size) for entry in store.list("a/")] == [("a/b", 4), ("a/c", 5)]
    assert [entry.key for entry in store.list("a/c")] == ["a/c"]
    assert list(store.list("nothing/")) == []
    store.delete("a/b")
    store.delete("a/b")
    assert [entry.key for entry in store.list("a/")] == ["a/c"]


def test_files_go_in_and_out(store: Store, tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    (tmp_path / "in").write_bytes(content)
    store.upload(tmp_path / "in", "deep/er/file")
    store.download("deep/er/file", tmp_path / "new" / "out")
    assert (tmp_path / "new" / "out").read_bytes() == content


def test_what_is_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="'no/such'"):
        store.get("no/such")
    with pytest.raises(NotFound):
        store.download("no/such", tmp_path / "out")
    assert list(tmp_path.glob("out*")) == []


def test_only_old_drafts_are_swept(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("runs/a/log.txt", b"whole")
    for name, age in ((".draft-killed", 7200), (".draft-writing", 60)):
        (tmp_path / "runs" / "a" / name).write_bytes(b"half")
        then = (tmp_path / "runs" / "a" / name).stat().st_mtime - age
        os.utime(tmp_path / "runs" / "a" / name, (then, then))
    store.sweep(age=3600)
    assert sorted(path.name for path in (tmp_path / "runs" / "a").iterdir()) == [".draft-writing", "log.txt"]


@pytest.mark.parametrize("key", ["", "/a", "../a", "a/../b", "a//b", "a\\b", "a/"])
def test_keys_that_lead_astray_are_refused(store: Store, key: str) -> None:
    with pytest.raises(StoreError, match="relative path"):
        store.put(key, b"")


def test_blobs_are_checked_when_read(store: Store, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"content")
    digest = put_blob(store, tmp_path / "in")
    assert digest == digest_of(tmp_path / "in") == put_blob(store, tmp_path / "in")
    get_blob(store, digest, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"content"
    store.put(blob_key(digest), b"Content")
    with pytest.raises(Corrupt, match=digest):
        get_blob(store, digest, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_readers_never_see_half_a_value(store: Store) -> None:
    """While one thread overwrites a value again and again, another reads: it sees old or new, never a mixture."""
    values = [bytes([n]) * 300_000 for n in range(2)]
    store.put("value", values[0])
    seen, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(store.get("value") in values)

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(20):
        store.put("value", values[n % 2])
    done.set()
    reader.join()
    assert seen
    assert all(seen)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.put("kept", b"old")
    with pytest.raises(StoreError, match="cannot write 'kept'"):
        store.upload(tmp_path / "no such file", "kept")
    assert store.get("kept") == b"old"
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["kept"]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    store = LocalStore(tmp_path / "store")
    with pytest.raises(StoreError, match="cannot write 'key': No space left on device"):
        store.put("key", b"value")
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("address", ["http://host/x", "file://relative/x", "/plain/path", "s3://"])
def test_addresses_that_mean_no_store(address: str) -> None:
    with pytest.raises(StoreError, match=r"file:///an/absolute/folder and s3://bucket/prefix"):
        open_store(address)


def test_the_address_opens_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path / "a store")
    store.put("key", b"value")
    assert open_store(store.url).get("key") == b"value"
    monkeypatch.setenv("TMCTL_STORE", store.url)
    assert open_store().get("key") == b"value"
