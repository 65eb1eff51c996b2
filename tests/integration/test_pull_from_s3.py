"""Pulling a release from a private bucket of a real S3 server, with credentials and with presigned addresses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest

from jobs.release import presigned_urls
from tests.cutting_proxy import line
from tests.s3_server import S3Server
from tinymusician.artifacts import download as transfer
from tinymusician.artifacts.installation import Installation
from tinymusician.artifacts.manifest import publish
from tinymusician.artifacts.pull import PullClient
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.s3 import S3Store
from tinymusician.artifacts.sources import open_source
from tinymusician.errors import NotFoundError

pytestmark = pytest.mark.slow

DECODER = np.random.default_rng(0).bytes(6_000_000)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_FIRST_WAIT", 0.01)


@pytest.fixture
def registry(s3_store: S3Store, tmp_path: Path) -> ReleaseRegistry:
    """One release in the bucket."""
    made = ReleaseRegistry(s3_store, tmp_path / "keys")
    made.create()
    released(made, tmp_path / "made", DECODER)
    return made


def released(registry: ReleaseRegistry, folder: Path, decoder: bytes) -> None:
    folder.mkdir()
    (folder / "decoder.onnx").write_bytes(decoder)
    (folder / "config.json").write_text("{}")
    facts: dict[str, Any] = {"recipe": {}, "lineage": {}, "metrics": {}, "licence": "Apache-2.0"}
    registry.release(publish(registry.store, folder, name="band", kind="bundle", **facts), "stable", {})


def pulled(registry: ReleaseRegistry, device: Path, url: str) -> bytes:
    version = PullClient("band@stable", device, [open_source(url)], registry.roots()[0].public_keys("root")[0]).pull()
    return (device / version.folder / "decoder.onnx").read_bytes()


def test_connection_that_breaks_repeatedly(
    registry: ReleaseRegistry, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With credentials and with presigned addresses: what has arrived is not loaded again."""
    with line(urlparse(s3.endpoint).port or 0) as cut:
        monkeypatch.setenv("AWS_ENDPOINT_URL", cut.url)
        through = ReleaseRegistry(open_again(registry.store), tmp_path / "keys")
        listed = tmp_path / "stable.json"
        listed.write_text(json.dumps({"addresses": presigned_urls(through, "band", "stable", 600)}))
        for number, url in enumerate((registry.store.url, listed.as_uri())):
            cut.cuts, cut.carried = [900_000] * 6, 0
            assert pulled(registry, tmp_path / f"device-{number}", url) == DECODER
            assert not cut.cuts, "it was cut six times"
            assert cut.carried < 1.3 * len(DECODER)


def open_again(store: Any) -> S3Store:
    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    return S3Store(bucket, prefix)


def test_redirect_to_presigned_addresses(registry: ReleaseRegistry, tmp_path: Path) -> None:
    """A server of the app's own; its first answer for a file bears a signature that S3 refuses."""
    store = registry.store
    assert isinstance(store, S3Store)
    with redirecting(store) as (url, requested):
        assert pulled(registry, tmp_path / "device", url) == DECODER
    spoilt = [key for key in requested if key.startswith("blobs/")]
    assert len(spoilt) == len(set(spoilt)) + 1, "it was asked once more, at its own address"


def test_presigned_list_covers_only_its_release(registry: ReleaseRegistry, tmp_path: Path) -> None:
    listed, device = tmp_path / "stable.json", tmp_path / "device"
    listed.write_text(json.dumps({"addresses": presigned_urls(registry, "band", "stable", 600)}))
    assert pulled(registry, device, listed.as_uri()) == DECODER
    released(registry, tmp_path / "made-2", DECODER[::-1])
    with pytest.raises(NotFoundError, match="has no URL for 'blobs/sha256/"):
        pulled(registry, device, listed.as_uri())
    result = Installation(device).usable()
    assert result is not None
    assert result[0].release.version == 1, "the old one plays on"
    listed.write_text(json.dumps({"addresses": presigned_urls(registry, "band", "stable", 600)}))
    assert pulled(registry, device, listed.as_uri()) == DECODER[::-1]


@contextmanager
def redirecting(store: S3Store) -> Iterator[tuple[str, list[str]]]:
    """A server that leads every key to a presigned address, and what it was asked for."""
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            key = self.path.lstrip("/")
            address = store.presigned(key, 600)
            if key.startswith("blobs/") and not any(one.startswith("blobs/") for one in requested):
                address += "0"
            requested.append(key)
            self.send_response(302)
            self.send_header("Location", address)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requested
    finally:
        server.shutdown()
        server.server_close()
