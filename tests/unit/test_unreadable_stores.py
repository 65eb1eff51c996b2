"""What `tmctl pull` says of stores that it cannot read: the true reason, in plain words, without secrets."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.world import World
from tinymusician.artifacts.pull import PullClient
from tinymusician.artifacts.sources import FolderSource, open_source
from tinymusician.artifacts.trust import root_key
from tinymusician.errors import AccessDeniedError, StoreError, UntrustedError


class DeniedSource:
    """A source that answers 403 to everything."""

    url = "https://denied"

    def read(self, key: str, max_bytes: int) -> bytes:
        raise AccessDeniedError(f"{self.url}: status 403 for {key!r}")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:9", "http://127.0.0.1:9: no server responds there"),
        ("https://no-such-host.invalid/store", "its name cannot be resolved|no server responds|proxy does not"),
        ("file:///no/such/folder", "no such folder"),
    ],
)
def test_a_store_that_cannot_be_read_is_not_called_untrusted(tmp_path: Path, url: str, message: str) -> None:
    client = PullClient("band@stable", tmp_path, [open_source(url)], "ab" * 32)
    with pytest.raises(StoreError, match=message) as error:
        client.pull()
    assert not isinstance(error.value, UntrustedError)


def test_a_store_without_credentials_is_not_called_untrusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = PullClient("band@stable", tmp_path / "device", [open_source("s3://music/store")], "ab" * 32)
    with pytest.raises(StoreError, match="no credentials; set AWS_ACCESS_KEY_ID"):
        client.pull()


def test_both_reasons_of_a_silent_and_an_unsigned_source(world: World) -> None:
    world.registry.release(world.made(decoder="one"), "stable", {})
    sources = [open_source("http://127.0.0.1:9"), FolderSource(world.folder / "store")]
    client = PullClient("band@stable", world.folder / "other", sources, "ab" * 32)
    with pytest.raises(UntrustedError, match=r"none is signed by .*; another source: .*no server responds there"):
        client.pull()


@pytest.mark.parametrize("is_reversed", [False, True])
def test_denied_and_silent_sources_are_not_called_untrusted(world: World, is_reversed: bool) -> None:
    sources: list[Any] = [DeniedSource(), open_source("http://127.0.0.1:9")]
    client = PullClient("band@stable", world.folder / "other", sources[:: -1 if is_reversed else 1], "ab" * 32)
    with pytest.raises(AccessDeniedError, match="status 403"):
        client.pull()


def test_a_folder_without_documents_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    source = FolderSource(tmp_path / "empty")
    with pytest.raises(UntrustedError, match=r"root documents: none at file:.*; is this the address of a store\?"):
        PullClient("band@stable", tmp_path / "device", [source], "ab" * 32).pull()


@pytest.mark.parametrize(
    "url", ["http://user:secret@127.0.0.1:9/store", "http://127.0.0.1:9/list.json?X-Amz-Signature=secret"]
)
def test_secrets_of_an_address_are_in_no_message(tmp_path: Path, url: str) -> None:
    with pytest.raises(StoreError, match=r"^http://127\.0\.0\.1:9/\S+: no server responds there") as error:
        PullClient("band@stable", tmp_path, [open_source(url)], "ab" * 32).pull()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://[no]/", "ftp://u:secret@h/x", "s3://u:secret@bucket/x", "http://", "http://:80"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(StoreError, match=r"is no valid address|allowed are https") as error:
        open_source(url).read(root_key(1), 10)
    assert "secret" not in str(error.value)


def test_redirect_to_what_is_no_address(tmp_path: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "http://[secret")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        client = PullClient("band@stable", tmp_path, [open_source(f"http://127.0.0.1:{server.server_port}")], "ab" * 32)
        with pytest.raises(StoreError, match="redirects to what is not a URL") as error:
            client.pull()
        server.shutdown()
        thread.join()
    assert "secret" not in str(error.value)


def test_presigned_addresses_are_in_no_message(tmp_path: Path) -> None:
    addresses = {root_key(1): "http://127.0.0.1:9/x?X-Amz-Signature=secret"}
    (tmp_path / "list.json").write_text(json.dumps({"addresses": addresses}))
    source = open_source((tmp_path / "list.json").as_uri())
    with pytest.raises(StoreError, match="no server responds there") as error:
        PullClient("band@stable", tmp_path / "device", [source], "ab" * 32).pull()
    assert "secret" not in str(error.value)
