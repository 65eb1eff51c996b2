"""Downloads in pieces: what clients get, and how much is asked for while they do not read."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlparse

import pytest
import requests
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.byte_range import ByteRange, content_range, parse_range
from serve.download_proxy import FOLLOWING, DownloadMiddleware, middlewares
from tests.ray_cluster import wait_for
from tests.s3_server import free_port

SIZE, PIECE = 200_000_000, 4 << 20
SMALL = bytes(range(256)) * 40


class Files:
    """An application with a small file and a large one, which counts the bytes that it gives."""

    def __init__(self) -> None:
        self.given, self.counted = 0, 0
        self.app = Starlette(
            routes=[
                Route("/v1/bundles/{digest}/{path}", self.file),
                Route("/other", self.file),
                Route("/ready", self.file),
            ]
        )

    async def file(self, request: Request) -> Response:
        path = request.path_params.get("path", "small")
        if path == "missing":
            return Response("none", 404)
        size = {"small": len(SMALL), "empty": 0}.get(path, SIZE)
        part = parse_range(request.headers.get("range"))
        span = (part or ByteRange()).within(size)
        if part is not None and span is None:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
        start, stop = span or (0, 0)
        content = SMALL[start:stop] if path == "small" else bytes(stop - start)
        self.given += stop - start
        self.counted += FOLLOWING.decode() not in request.headers
        await request.body()  # as Ray's proxy reads it, for every piece
        headers = {"ETag": '"x"'} | ({"Content-Range": content_range(start, stop, size)} if part else {})
        return Response(content, 206 if part else 200, headers)


@contextlib.contextmanager
def serving(files: Files, piece: int, seconds: float = 60) -> Iterator[str]:
    port = free_port()
    app = DownloadMiddleware(files.app, max_downloads=4, piece=piece, seconds=seconds)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started, 10)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.mark.parametrize(
    ("header", "status", "content", "said"),
    [
        (None, 200, SMALL, None),
        ("bytes=0-", 206, SMALL, "bytes 0-10239/10240"),
        ("bytes=5-5000", 206, SMALL[5:5001], "bytes 5-5000/10240"),
        ("bytes=9000-99999", 206, SMALL[9000:], "bytes 9000-10239/10240"),
        ("bytes=-10", 200, SMALL, None),
        ("bytes=1-2,5-6", 200, SMALL, None),
        ("bytes=10240-", 416, b"", "bytes */10240"),
    ],
)
def test_pieces_are_one_response(
    files: Files, header: str | None, status: int, content: bytes, said: str | None
) -> None:
    with serving(files, piece=1000) as url:
        headers = {"Range": header} if header else {}
        answer = requests.get(f"{url}/v1/bundles/d/small", headers=headers, timeout=10)
        assert (answer.status_code, answer.content) == (status, content)
        assert answer.headers.get("Content-Range") == said
        assert int(answer.headers["Content-Length"]) == len(content)
        assert status == 416 or answer.headers["ETag"] == '"x"'


def test_a_large_file_arrives_whole(files: Files) -> None:
    with serving(files, PIECE) as url:
        answer = requests.get(f"{url}/v1/bundles/d/large", headers={"Range": "bytes=150000000-"}, timeout=30)
        assert (answer.status_code, len(answer.content)) == (206, 50_000_000)


def test_a_download_counts_once(files: Files) -> None:
    """A client cannot say that its request is a later piece."""
    with serving(files, piece=1000) as url:
        for headers in ({}, {"Range": "bytes=5-"}, {FOLLOWING.decode(): "1"}):
            files.counted = 0
            assert requests.get(f"{url}/v1/bundles/d/small", headers=headers, timeout=10).status_code in (200, 206)
            assert files.counted == 1
        requests.get(f"{url}/other", headers={FOLLOWING.decode(): "1"}, timeout=10)
        assert files.counted == 2


def test_a_changed_file_is_sent_whole(files: Files) -> None:
    with serving(files, piece=1000) as url:
        for tag, status in (('"d"', 206), ('"another"', 200)):
            headers = {"Range": "bytes=10-", "If-Range": tag}
            assert requests.get(f"{url}/v1/bundles/d/small", headers=headers, timeout=10).status_code == status


def test_a_client_that_takes_too_long_is_cut_off(files: Files) -> None:
    """Its place is free again, and `/ready` tells how many downloads there are."""
    with serving(files, PIECE, seconds=0.5) as url, contextlib.ExitStack() as stack:
        address = urlparse(url)
        for _ in range(4):
            client = stack.enter_context(socket.create_connection((address.hostname, address.port)))
            client.sendall(b"GET /v1/bundles/d/large HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(20).startswith(b"HTTP/1.1 200")
        assert requests.get(f"{url}/ready", timeout=10).headers["X-Downloads"] == "4"
        wait_for(lambda: requests.get(f"{url}/ready", timeout=10).headers["X-Downloads"] == "0", 10)
        assert requests.get(f"{url}/v1/bundles/d/small", timeout=10).content == SMALL


def test_what_is_no_download_passes(files: Files) -> None:
    with serving(files, piece=1000) as url:
        assert requests.get(f"{url}/v1/bundles/d/missing", timeout=10).status_code == 404
        assert requests.get(f"{url}/other", timeout=10).content == SMALL
        empty = requests.get(f"{url}/v1/bundles/d/empty", timeout=10)
        assert (empty.status_code, empty.content) == (200, b"")
        assert requests.head(f"{url}/v1/bundles/d/small", timeout=10).headers["Content-Length"] == str(len(SMALL))


def test_clients_that_do_not_read(files: Files) -> None:
    """Four take 20 bytes of 200 MB: what they do not take is not asked for. A fifth is told to come again."""
    with serving(files, PIECE) as url, contextlib.ExitStack() as stack:
        address = urlparse(url)
        for _ in range(4):
            client = stack.enter_context(socket.create_connection((address.hostname, address.port)))
            client.sendall(b"GET /v1/bundles/d/large HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(20).startswith(b"HTTP/1.1 200")
        assert files.given <= 4 * 4 * PIECE, "a piece, and what the sockets hold"
        refused = requests.get(f"{url}/v1/bundles/d/small", timeout=10)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "busy")
        assert int(refused.headers["Retry-After"]) >= 1
        assert requests.get(f"{url}/other", timeout=10).status_code == 200
        given = files.given
        stack.close()
        wait_for(lambda: requests.get(f"{url}/v1/bundles/d/small", timeout=10).status_code == 200, 10)
        assert files.given <= given + 4 * PIECE + len(SMALL), "nothing more is asked for"


def test_ray_accepts_the_middleware() -> None:
    from ray.serve._private.http_util import validate_http_proxy_callback_return

    (middleware,) = validate_http_proxy_callback_return(middlewares())
    assert middleware.cls is DownloadMiddleware
