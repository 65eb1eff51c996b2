"""What an S3 server may answer: errors with advice, headers that others refuse, credentials that stay secret."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.s3 import S3Store
from tinymusician.errors import AccessDeniedError, NotFoundError, StoreError, TransientStoreError

SECRET = "wJalrXUtnFEMI0K7MDENGbPxRfiCYEXAMPLEKEY"


class Server:
    """Answers every request with one status and error code, and keeps the requests' lines and headers.

    Beside an answer of `length` bytes, `is_left` says that a client went away before its end.
    """

    def __init__(self) -> None:
        self.status, self.code, self.length, self.is_left = 200, "", 0, threading.Event()
        self.requests: list[tuple[str, dict[str, str]]] = []


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    result = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            result.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            body = (
                bytes(result.length) if result.status == 200 else f"<Error><Code>{result.code}</Code></Error>".encode()
            )
            self.send_response(result.status)
            self.send_header("ETag", '"x"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                try:
                    self.wfile.write(body)
                except ConnectionError:
                    result.is_left.set()

        do_PUT = do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{httpd.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between botocore's retries
    yield result
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize(
    ("status", "code", "kind", "message"),
    [
        (
            403,
            "AccessDenied",
            AccessDeniedError,
            "denies access, as it also does for .* s3:ListBucket",
        ),
        (403, "SignatureDoesNotMatch", AccessDeniedError, "signature does not match; check AWS_SECRET_ACCESS_KEY"),
        (403, "RequestTimeTooSkewed", AccessDeniedError, "clock and the server's differ .*; set the clock"),
        (403, "InvalidAccessKeyId", AccessDeniedError, "refused the credentials; check AWS_ACCESS_KEY_ID"),
        (503, "SlowDown", TransientStoreError, "asks for fewer requests"),
    ],
)
def test_each_error_has_its_advice(
    server: Server, status: int, code: str, kind: type[StoreError], message: str
) -> None:
    server.status, server.code = status, code
    with pytest.raises(kind, match=message) as error:
        S3Store("music").get("key")
    assert "\n" not in str(error.value)
    assert len(server.requests) == (4 if status == 503 else 1), "an overload is retried"


def test_a_head_request_without_permission(server: Server) -> None:
    """Its answer has no body, and no code beside the status."""
    server.status = 403
    with pytest.raises(AccessDeniedError, match="s3:ListBucket"):
        S3Store("music").exists("key")


def test_a_bucket_that_does_not_exist(server: Server) -> None:
    """A HEAD's answer has no text."""
    server.status, server.code = 404, "NoSuchBucket"
    with pytest.raises(StoreError, match="no such bucket"), S3Store("b", "").stream("k", 0, ""):
        pass
    server.code = "NoSuchKey"
    with pytest.raises(NotFoundError), S3Store("b", "").stream("k", 0, ""):
        pass


def test_a_download_that_is_given_up_ends_its_connection(server: Server) -> None:
    server.length = 64_000_000
    with S3Store("b", "").stream("k", 0, "") as (offset, _, chunks):
        assert (offset, set(next(chunks))) == (0, {0})
        assert not server.is_left.is_set()
    assert server.is_left.wait(30)


def test_checksums_are_sent_only_on_request(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    store = S3Store("music")
    store.put("a", b"x")
    store.upload(tmp_path / "file", "b")
    assert not [name for _, headers in server.requests for name in headers if "checksum" in name or "trailer" in name]
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    S3Store("music").put("a", b"x")
    assert [name for name in server.requests[-1][1] if "checksum" in name]
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION")
    (tmp_path / "config").write_text("[default]\nrequest_checksum_calculation = when_supported\n")
    S3Store("music").put("a", b"x")
    assert [name for name in server.requests[-1][1] if "checksum" in name]


def test_the_addressing_style_of_the_profile_is_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    S3Store("music").put("a", b"x")
    assert server.requests[-1][0] == "/music/a"
    (tmp_path / "config").write_text("[default]\ns3 =\n    addressing_style = virtual\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example")
    assert S3Store("music").presigned("a", 60).startswith("https://music.s3.example/a?")


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
def test_white_space_in_credentials(server: Server, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, f"{SECRET}\n")
    with pytest.raises(StoreError, match=f"{variable}: contains white space; remove it") as error:
        S3Store("music")
    assert SECRET not in str(error.value)
    assert not server.requests


def test_messages_have_no_credentials(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://user:{SECRET}@127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(TransientStoreError, match="check HTTPS_PROXY and HTTP_PROXY, or name") as error:
        S3Store("music").get("key")
    assert SECRET not in str(error.value)
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(StoreError, match=r"\(absent\) could not be found; check AWS_PROFILE"):
        S3Store("music")


@pytest.mark.parametrize("name", ["a b", "a?b", "a#b", "a%20b", "100%", "ü", "a+b", "a&b=c", "a//b", "[x]", "a:b@c"])
def test_characters_of_addresses_survive(server: Server, name: str, tmp_path: Path) -> None:
    """What a job is given is the same store."""
    for address in (f"s3://music/{name}", (tmp_path / name).as_uri()):
        assert open_store(open_store(address).url).url == open_store(address).url
    open_store((tmp_path / name).as_uri()).put("key", b"x")
    assert (tmp_path / name / "key").read_bytes() == b"x"
    store = open_store(f"s3://music/{name}")
    assert isinstance(store, S3Store)
    assert store._prefix == f"{name}/"


def test_a_question_mark_in_a_folder(tmp_path: Path) -> None:
    """As users type it, not as a web address would need it."""
    open_store(f"file://{tmp_path}/a?b#c").put("key", b"x")
    assert (tmp_path / "a?b#c" / "key").is_file()
