"""Downloads over HTTP from servers with each kind of fault."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.faulty_server import (
    Fault,
    FaultyServer,
    faulty_server,
    hang_up,
    no_ranges,
    paced,
    redirect,
    redirect_for_ever,
    refuse,
    slowly,
    too_many,
    trickle,
    truncate,
    wrong_bytes,
    wrong_half,
    wrong_range,
)
from tinymusician.artifacts import download as transfer
from tinymusician.artifacts import sources as source_module
from tinymusician.artifacts.blobs import blob_key
from tinymusician.artifacts.download import BandwidthLimiter, download, read_small
from tinymusician.artifacts.release import ReleasedFile
from tinymusician.artifacts.sources import CHUNK, FolderSource, HttpSource, Source, open_source
from tinymusician.errors import AccessDeniedError, DigestMismatchError, NotFoundError, StoreError

SIZE = 2_000_000


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_FIRST_WAIT", 0.001)


@pytest.fixture
def data() -> bytes:
    return np.random.default_rng(0).bytes(SIZE)


@pytest.fixture
def file(data: bytes) -> ReleasedFile:
    return ReleasedFile(path="decoder.onnx", size=len(data), sha256=hashlib.sha256(data).hexdigest())


@pytest.fixture
def server(tmp_path: Path, data: bytes, file: ReleasedFile) -> Iterator[FaultyServer]:
    path = tmp_path / "store" / blob_key(file.sha256)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with faulty_server(tmp_path / "store") as result:
        yield result


def bring_to(folder: Path, server: FaultyServer, file: ReleasedFile) -> tuple[Path, int]:
    """The file's place, and the sum of all that was told."""
    bytes_done = [0]
    place = download([HttpSource(server.url)], file, folder, lambda size: bytes_done.append(size), BandwidthLimiter())
    return place, sum(bytes_done)


FAULTS: dict[str, list[Fault]] = {
    "500": [refuse(500)],
    "503 with a time": [refuse(503, Retry_After="0")],
    "403, as of a presigned address that is too old": [redirect, refuse(403)],
    "429": [refuse(429)],
    "truncated": [truncate(0.5)],
    "truncated, and again": [truncate(0.3), truncate(0.5), truncate(0.9)],
    "wrong bytes": [wrong_bytes],
    "too many bytes": [too_many],
    "truncated, then another range": [truncate(0.5), wrong_range],
    "truncated, then the whole for a range": [truncate(0.5), no_ranges],
    "truncated, then 416": [truncate(0.5), refuse(416)],
    "redirected": [redirect],
    "hung up": [hang_up],
    "slow": [slowly(0.2)],
    "everything": [
        hang_up,
        refuse(500),
        truncate(0.5),
        refuse(503),
        wrong_range,
        truncate(0.9),
        refuse(416),
        truncate(0.1),
    ],
}


@pytest.mark.parametrize("name", FAULTS)
def test_pull_survives_a_faulty_server(
    name: str, tmp_path: Path, server: FaultyServer, file: ReleasedFile, data: bytes
) -> None:
    server.faults = list(FAULTS[name])
    place, bytes_done = bring_to(tmp_path / "device", server, file)
    assert place.read_bytes() == data
    assert bytes_done == SIZE, "what had to be fetched again was taken back"
    assert not server.faults
    assert not list((tmp_path / "device" / "partial").iterdir())


def test_download_resumes_at_the_break(tmp_path: Path, server: FaultyServer, file: ReleasedFile, data: bytes) -> None:
    server.faults = [truncate(0.5)]
    bring_to(tmp_path / "device", server, file)
    (_, first), (_, second) = server.requests
    assert first == 0
    assert SIZE // 2 - CHUNK < second <= SIZE // 2, "less than a chunk is lost"


def test_another_mirror_resumes_the_download(
    tmp_path: Path, server: FaultyServer, file: ReleasedFile, data: bytes
) -> None:
    with faulty_server(server.root) as other:
        server.faults = [truncate(0.25)] + [refuse(500)] * 99
        sources = [HttpSource(server.url), HttpSource(other.url)]
        place = download(sources, file, tmp_path / "device", lambda size: None, BandwidthLimiter())
        assert place.read_bytes() == data
        assert SIZE // 4 - CHUNK < other.requests[0][1] <= SIZE // 4


def test_mirror_with_wrong_bytes_is_skipped(
    tmp_path: Path, server: FaultyServer, file: ReleasedFile, data: bytes
) -> None:
    server.faults = [wrong_bytes] * 99
    sources = [HttpSource(server.url), FolderSource(server.root)]
    assert download(sources, file, tmp_path / "device", lambda size: None, BandwidthLimiter()).read_bytes() == data
    with pytest.raises(DigestMismatchError, match=r"decoder\.onnx has SHA-256 .*…; the release says"):
        bring_to(tmp_path / "other", server, file)
    assert not (tmp_path / "other" / "blobs" / file.sha256).exists()


def test_mirror_below_the_minimum_speed(
    tmp_path: Path, server: FaultyServer, file: ReleasedFile, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror below the minimum rate in one interval is left for another, whatever it sent before."""
    monkeypatch.setattr(transfer, "_RATE_SECONDS", 0.1)
    server.faults = [trickle(0.5)]
    with faulty_server(server.root) as other:
        sources = [HttpSource(server.url), HttpSource(other.url)]
        assert download(sources, file, tmp_path / "device", lambda size: None, BandwidthLimiter()).read_bytes() == data
        ((_, start),) = other.requests
        assert SIZE // 2 <= start < SIZE // 2 + 1000


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source is measured over 0.2 s, and slow if more than 5 s are missing."""
    monkeypatch.setattr(transfer, "_RATE_SECONDS", 0.2)
    monkeypatch.setattr(transfer, "_SLOW_SECONDS", 5.0)


@pytest.mark.usefixtures("short_limits")
def test_slow_mirror_is_left_and_the_fastest_of_slow_ones_continues(
    tmp_path: Path, server: FaultyServer, file: ReleasedFile, data: bytes
) -> None:
    """Both would need more than 5 s for 2 MB: 100 s and 20 s. A second request is fast here."""
    with faulty_server(server.root) as other:
        server.faults, other.faults = [paced(20_000)], [paced(100_000)]
        sources = [HttpSource(server.url), HttpSource(other.url)]
        assert download(sources, file, tmp_path / "device", lambda size: None, BandwidthLimiter()).read_bytes() == data
        assert (len(server.requests), len(other.requests)) == (1, 2)
        starts = [start for _, start in other.requests]
        assert 0 < starts[0] < starts[1], "each continues where the one before stopped"


@pytest.mark.usefixtures("short_limits")
def test_slow_mirror_is_left_for_all_files_together(tmp_path: Path, server: FaultyServer, file: ReleasedFile) -> None:
    """2 MB alone would take 2 of the 5 s that are allowed, and 8 MB more not; the next file begins at the other one."""
    with faulty_server(server.root) as other:
        server.faults = [paced(1_000_000)]
        sources: list[Source] = [HttpSource(server.url), HttpSource(other.url)]
        download(sources, file, tmp_path / "device", lambda size: None, BandwidthLimiter(), later_bytes=8_000_000)
        assert (len(server.requests), len(other.requests)) == (1, 1)
        download(sources, file, tmp_path / "again", lambda size: None, BandwidthLimiter())
        assert (len(server.requests), len(other.requests)) == (1, 2)


def test_slow_mirror_continues_if_the_other_does_not_answer(
    tmp_path: Path, server: FaultyServer, file: ReleasedFile, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left once, for one that refuses; then it goes on, however slow: 2 MB at 1 MB/s, where 0.1 s are allowed."""
    monkeypatch.setattr(transfer, "_RATE_SECONDS", 0.1)
    monkeypatch.setattr(transfer, "_SLOW_SECONDS", 0.1)
    with faulty_server(server.root) as other:
        server.faults, other.faults = [paced(1_000_000)] * 9, [refuse(503)] * 9
        sources = [HttpSource(server.url), HttpSource(other.url)]
        assert download(sources, file, tmp_path / "device", lambda size: None, BandwidthLimiter()).read_bytes() == data
        assert (len(server.requests), len(other.requests)) == (2, 1)


def test_a_limit_of_the_device_and_the_only_mirror_are_not_slow(
    tmp_path: Path, server: FaultyServer, file: ReleasedFile, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit of 2 MB a second nothing needs less than 0.1 s; nor does the only mirror."""
    monkeypatch.setattr(transfer, "_RATE_SECONDS", 0.1)
    monkeypatch.setattr(transfer, "_SLOW_SECONDS", 0.1)
    both = [HttpSource(server.url), HttpSource(f"{server.url}/")]
    for name, sources, limit in (("limited", both, 2_000_000.0), ("only", both[:1], 0.0)):
        server.faults = [] if limit else [paced(4_000_000)]
        server.requests.clear()
        place = download(sources, file, tmp_path / name, lambda size: None, BandwidthLimiter(limit))
        assert place.read_bytes() == data
        assert len(server.requests) == 1


def test_mirrors_with_inconsistent_bytes(tmp_path: Path, server: FaultyServer, file: ReleasedFile, data: bytes) -> None:
    """Half a file of wrong bytes from one mirror does not make another, which goes on with right ones, the bad one."""
    with faulty_server(server.root) as good:
        server.faults = [wrong_half] * 99
        sources = [HttpSource(server.url), HttpSource(good.url)]
        bytes_done = [0]
        place = download(sources, file, tmp_path / "device", bytes_done.append, BandwidthLimiter())
        assert place.read_bytes() == data
        assert sum(bytes_done) == SIZE


def test_progressing_mirror_is_not_interrupted(
    tmp_path: Path, server: FaultyServer, file: ReleasedFile, data: bytes
) -> None:
    """One mirror sends wrong halves for ever, the line to the good one is cut five times: it still comes to its end."""
    with faulty_server(server.root) as good:
        server.faults, good.faults = [wrong_half] * 999, [truncate(0.3)] * 5
        sources = [HttpSource(server.url), HttpSource(good.url)]
        assert download(sources, file, tmp_path / "device", lambda size: None, BandwidthLimiter()).read_bytes() == data


def test_endless_response_for_a_small_value(
    server: FaultyServer, file: ReleasedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "_READ_SECONDS", 0.05)
    server.faults = [trickle(0.001)]
    with pytest.raises(StoreError, match="bytes arrived in"):
        HttpSource(server.url).read(blob_key(file.sha256), SIZE)


def test_small_values_are_retried(tmp_path: Path, server: FaultyServer, file: ReleasedFile) -> None:
    (server.root / "keys").mkdir()
    (server.root / "keys" / "x").write_bytes(b"a root document")
    server.everywhere = True
    server.faults = [refuse(503), hang_up, truncate(0.5)]
    assert read_small(HttpSource(server.url), "keys/x", 100) == b"a root document"
    server.faults = [refuse(503)] * 99
    with pytest.raises(StoreError, match="status 503 for 'keys/x'"):
        read_small(HttpSource(server.url), "keys/x", 100)
    server.faults = [refuse(403)]
    with pytest.raises(AccessDeniedError, match="status 403"):
        read_small(HttpSource(server.url), "keys/x", 100)
    assert not server.faults, "a store that does not say is not asked again"


def test_earlier_partial_downloads_are_used(tmp_path: Path, server: FaultyServer, file: ReleasedFile) -> None:
    server.faults = [truncate(0.5)] + [refuse(401)] * 2
    with pytest.raises(StoreError, match="the connection broke off"):
        bring_to(tmp_path / "device", server, file)
    _, bytes_done = bring_to(tmp_path / "device", server, file)
    assert bytes_done == SIZE


def test_symbolic_links_are_rejected(tmp_path: Path, server: FaultyServer, file: ReleasedFile, data: bytes) -> None:
    """Links in the device's folder that would overwrite a file elsewhere, or be taken for a file, are removed."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    for folder in ("partial", "blobs"):
        place = tmp_path / "device" / folder / file.sha256
        place.parent.mkdir(parents=True)
        place.symlink_to(outside)
    place, _ = bring_to(tmp_path / "device", server, file)
    assert not place.is_symlink()
    assert place.read_bytes() == data
    assert outside.read_bytes() == b"mine"


def test_pipeline_ends_with_a_clear_state(tmp_path: Path, server: FaultyServer, file: ReleasedFile) -> None:
    """Every failure that lasts ends, and says what it was; what had arrived is kept for the next time."""
    missing = file.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(NotFoundError, match="nothing under 'blobs/sha256/0000"):
        bring_to(tmp_path / "device", server, missing)
    for fault, message in (
        (refuse(500), "status 500 for"),
        (refuse(401), "status 401 for"),
        (redirect_for_ever, "more than 5 redirects"),
        (hang_up, r"the connection broke off"),
    ):
        server.faults = [fault] * 99
        with pytest.raises(StoreError, match=message):
            bring_to(tmp_path / "device", server, file)
    server.faults = [truncate(0.5)] + [refuse(503)] * 99
    with pytest.raises(StoreError, match="status 503"):
        bring_to(tmp_path / "device", server, file)
    arrived = (tmp_path / "device" / "partial" / file.sha256).stat().st_size
    assert SIZE // 2 - CHUNK < arrived <= SIZE // 2
    server.faults, server.requests = [], []
    bring_to(tmp_path / "device", server, file)
    assert server.requests[0][1] == arrived


def test_bandwidth_limit(
    tmp_path: Path, server: FaultyServer, file: ReleasedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the sleeps that it asks for, so nothing waits here: 2 MB at 1 MB/s are 2 s, less what the loading took."""
    slept: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(transfer.time, "sleep", sleep)
    monkeypatch.setattr(transfer.time, "monotonic", lambda: clock[0])
    download([HttpSource(server.url)], file, tmp_path / "device", lambda size: None, BandwidthLimiter(1e6, 0.0))
    assert sum(slept) == pytest.approx(SIZE / 1e6, rel=1e-6)


def test_a_proxy_of_the_environment(
    tmp_path: Path, server: FaultyServer, file: ReleasedFile, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server plays the proxy: it is asked for whole addresses, of a host that is nowhere."""
    monkeypatch.setenv("http_proxy", server.url)
    source = HttpSource("http://music.invalid")
    assert download([source], file, tmp_path / "device", lambda size: None, BandwidthLimiter()).read_bytes() == data
    assert server.requests == [(f"http://music.invalid/{blob_key(file.sha256)}", 0)]


def test_https_never_redirects_to_http(server: FaultyServer, file: ReleasedFile) -> None:
    source = HttpSource("https://example.invalid")

    class Moved:
        is_redirect, headers = True, {"Location": "http://example.invalid/x"}

        def close(self) -> None:
            """Nothing is open."""

    source._session.get = lambda *_, **__: Moved()  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(StoreError, match="redirects from HTTPS to"), source.open("blobs/x", 0, ""):
        pass


def test_a_list_of_addresses(tmp_path: Path, server: FaultyServer, file: ReleasedFile, data: bytes) -> None:
    """From a file and from a server; one that is none, or leads out of HTTPS, ends with a line that says so."""
    key = blob_key(file.sha256)
    listed = tmp_path / "store" / "stable.json"
    listed.write_text(json.dumps({"addresses": {key: f"{server.url}/signed/{key}?signature=x"}}))
    server.faults = [truncate(0.5), refuse(403)]
    for number, url in enumerate((f"{server.url}/stable.json", listed.as_uri())):
        place = download([open_source(url)], file, tmp_path / str(number), lambda size: None, BandwidthLimiter())
        assert place.read_bytes() == data
    with pytest.raises(NotFoundError, match="has no URL for 'keys/x'"):
        open_source(listed.as_uri()).read("keys/x", 10)
    with pytest.raises(NotFoundError, match=r"nothing under 'none\.json'"):
        open_source(f"{listed.parent.as_uri()}/none.json").read("keys/x", 10)
    gc.collect()  # what earlier requests left is not finalized at the bottom of the last one's recursion
    for content in ("[]", "{", '{"addresses": [1]}', "[" * 100_000):
        listed.write_text(content)
        with pytest.raises(StoreError, match="is not a list of URLs"):
            open_source(listed.as_uri()).read(key, 10)
    listed.write_text(json.dumps({"addresses": {key: "file:///etc/passwd"}}))
    with pytest.raises(StoreError, match="redirects to 'file'; allowed are"):
        open_source(listed.as_uri()).read(key, 10)


def test_addresses() -> None:
    assert open_source("file:///tmp/x").url == "file:///tmp/x"
    assert open_source("https://a.example/store/").url == "https://a.example/store"
    for bad in ("ftp://x", "file://host/x", "store", "s3://"):
        with pytest.raises(StoreError, match="allowed are https://"):
            open_source(bad)
