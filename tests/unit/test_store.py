"""The store's behaviour, the same over a local folder and over a real S3 server."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tinymusician.artifacts.atomic import atomic_write, open_lock
from tinymusician.artifacts.blobs import blob_key, digest_of, get_blob, put_blob
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.store import LocalStore, Store
from tinymusician.errors import DigestMismatchError, NotFoundError, StoreError


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


def test_files_round_trip(store: Store, tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    (tmp_path / "in").write_bytes(content)
    store.upload(tmp_path / "in", "deep/er/file")
    store.download("deep/er/file", tmp_path / "new" / "out")
    assert (tmp_path / "new" / "out").read_bytes() == content


def test_missing_input(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="'no/such'"):
        store.get("no/such")
    with pytest.raises(NotFoundError):
        store.download("no/such", tmp_path / "out")
    assert list(tmp_path.glob("out*")) == []


_WRITER = """
import sys
from pathlib import Path
from tinymusician.artifacts.atomic import atomic_write, open_lock
with atomic_write(Path(sys.argv[1])) as draft:
    draft.write_bytes(b"half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_drafts_of_killed_processes_are_swept(tmp_path: Path) -> None:
    """A draft stays as long as its writer lives, and goes as soon as it was killed."""
    store, folder = LocalStore(tmp_path), tmp_path / "runs" / "a"
    store.put("runs/a/log.txt", b"whole")
    command = [sys.executable, "-c", _WRITER, str(folder / "status.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        with atomic_write(folder / "metrics.jsonl") as draft:
            draft.write_bytes(b"mine")
            store.sweep()
            assert len(list(folder.iterdir())) == 3
            writer.kill()
            writer.wait()
            store.sweep()
            assert set(folder.iterdir()) == {draft, folder / "log.txt"}
    assert store.get("runs/a/metrics.jsonl") == b"mine"
    assert [entry.key for entry in store.list("")] == ["runs/a/log.txt", "runs/a/metrics.jsonl"]


def test_concurrent_writers_and_sweepers(tmp_path: Path) -> None:
    """No draft is taken from a writer that has only just begun, and no folder that vanishes stops a sweep."""
    store = LocalStore(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        done = threading.Event()
        sweepers = [pool.submit(lambda: [store.sweep() for _ in iter(done.is_set, True)]) for _ in range(3)]
        writers = [pool.submit(lambda n=n: [store.put(f"{n}/{i}", b"x") for i in range(200)]) for n in range(4)]
        try:
            for number in range(200):
                store.put(f"passing/{number}/x", b"x")
                shutil.rmtree(tmp_path / "passing")
            for writer in writers:
                writer.result()
        finally:
            done.set()
        for sweeper in sweepers:
            sweeper.result()
    assert len(list(store.list(""))) == 800


def test_drafts_from_elsewhere_are_swept_when_they_are_old(tmp_path: Path) -> None:
    """Of a machine or container whose processes cannot be seen from here, and of an older make."""
    store = LocalStore(tmp_path)
    for name, age in ((".draft-0a1b2c3d-999999999-x", 7200), (".draft-killed", 7200), (".draft-0a1b2c3d-1-x", 60)):
        (tmp_path / name).write_bytes(b"half")
        then = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (then, then))
    store.sweep(age=3600)
    assert [path.name for path in tmp_path.iterdir()] == [".draft-0a1b2c3d-1-x"]


@pytest.mark.parametrize("key", ["", "/a", "../a", "a/../b", "a//b", "a\\b", "a/"])
def test_invalid_store_keys_are_rejected(store: Store, key: str) -> None:
    with pytest.raises(StoreError, match="relative path"):
        store.put(key, b"")


def test_blobs_are_checked_when_read(store: Store, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"content")
    digest = put_blob(store, tmp_path / "in")
    assert digest == digest_of(tmp_path / "in") == put_blob(store, tmp_path / "in")
    get_blob(store, digest, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"content"
    store.put(blob_key(digest), b"Content")
    with pytest.raises(DigestMismatchError, match=digest):
        get_blob(store, digest, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_blob_of_another_size_is_stored_again(store: Store, tmp_path: Path) -> None:
    """What an upload that was cut off, or another program, left under a blob's key does not count as the blob."""
    (tmp_path / "file").write_bytes(b"whole")
    store.put(blob_key(digest_of(tmp_path / "file")), b"cut")
    digest = put_blob(store, tmp_path / "file")
    get_blob(store, digest, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"whole"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_of_the_users_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "file") as draft:
            draft.write_text("text")
        with atomic_write(tmp_path / "secret", 0o600) as draft:
            assert stat.S_IMODE(draft.stat().st_mode) == 0o600 & ~umask
            draft.write_text("key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_a_lock_does_not_follow_a_link(tmp_path: Path) -> None:
    """Another user may plant one in a shared folder: its target would be emptied."""
    (tmp_path / "target").write_text("content")
    (tmp_path / "lock").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        open_lock(tmp_path / "lock")
    (tmp_path / "lock").unlink()
    open_lock(tmp_path / "lock").close()
    assert (tmp_path / "target").read_text() == "content"


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


def test_failed_write_leaves_no_file(tmp_path: Path) -> None:
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


def test_store_address_round_trips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path / "a store")
    store.put("key", b"value")
    assert open_store(store.url).get("key") == b"value"
    monkeypatch.setenv("TMCTL_STORE", store.url)
    assert open_store().get("key") == b"value"
