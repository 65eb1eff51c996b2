"""A web server over a folder, with configurable faults."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

Fault = Callable[["Handler", bytes, int], bool]
"""Answers a request for these bytes from this place on, or returns False to let it be answered well."""


class Handler(BaseHTTPRequestHandler):
    """Ranges, If-Range and entity tags as RFC 9110 has them, unless there is a fault for the request."""

    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def do_GET(self) -> None:
        path = self.server.root / urlparse(self.path).path.lstrip("/").removeprefix("signed/")
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.server.requests.append((self.path, start))
        if not path.is_file():
            self.answer(404, b"")
            return
        data = path.read_bytes()
        fault = self.server.fault(self.path)
        if fault is None or not fault(self, data, start):
            self.well(data, start)

    def well(self, data: bytes, start: int) -> None:
        """The right answer."""
        tag = f'"{hash(data) & 0xFFFFFFFF:x}"'
        same = self.headers.get("If-Range") in (None, tag)
        if start and same and start < len(data):
            place = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            self.answer(206, data[start:], {"ETag": tag, **place})
        elif start and same:
            self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        else:
            self.answer(200, data, {"ETag": tag})

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        """Any answer; `length` is what the header says of the body's."""
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True
        if length is not None and length != len(body):
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class FaultyServer(ThreadingHTTPServer):
    """The server: `faults` are used up one after the other by requests for blobs, or for anything `everywhere`."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.faults, self.requests = root, list[Fault](), list[tuple[str, int]]()
        self.everywhere = False
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, path: str) -> Fault | None:
        with self._lock:
            return self.faults.pop(0) if self.faults and ("/blobs/" in path or self.everywhere) else None


@contextmanager
def faulty_server(root: Path) -> Iterator[FaultyServer]:
    """A server over a folder."""
    server = FaultyServer(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def refuse(code: int, **headers: str) -> Fault:
    """Answer with this status."""

    def fault(handler: Handler, data: bytes, start: int) -> bool:
        handler.answer(code, b"not now", {name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return fault


def truncate(share: float) -> Fault:
    """Send a share of what was promised, and hang up."""

    def fault(handler: Handler, data: bytes, start: int) -> bool:
        rest = data[start:]
        code, place = (206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}) if start else (200, {})
        handler.answer(code, rest[: int(share * len(rest))], place, len(rest))
        return True

    return fault


def wrong_bytes(handler: Handler, data: bytes, start: int) -> bool:
    """As many bytes as there should be, but others."""
    handler.answer(200, bytes(255 - value for value in data))
    return True


def wrong_half(handler: Handler, data: bytes, start: int) -> bool:
    """Half of what was promised, of other bytes, and hang up."""
    handler.answer(200, bytes(255 - value for value in data[: len(data) // 2]), None, len(data))
    return True


def trickle(share: float) -> Fault:
    """A share at once, and then a byte now and then for as long as anybody listens."""

    def fault(handler: Handler, data: bytes, start: int) -> bool:
        begun = int(share * len(data))
        handler.answer(200, data[:begun], None, len(data))
        try:
            for place in range(begun, len(data)):
                handler.wfile.write(data[place : place + 1])
                time.sleep(0.01)
        except OSError:
            pass
        return True

    return fault


def paced(rate: float) -> Fault:
    """The right bytes, so many a second, for as long as anybody listens."""

    def fault(handler: Handler, data: bytes, start: int) -> bool:
        code, place = (206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}) if start else (200, {})
        part = int(rate / 50)
        handler.answer(code, data[start : start + part], place, len(data) - start)
        try:
            for begin in range(start + part, len(data), part):
                time.sleep(0.02)
                handler.wfile.write(data[begin : begin + part])
        except OSError:
            pass
        return True

    return fault


def too_many(handler: Handler, data: bytes, start: int) -> bool:
    """More than there should be."""
    handler.answer(200, data + b"more")
    return True


def wrong_range(handler: Handler, data: bytes, start: int) -> bool:
    """Another range than was asked for."""
    if not start:
        return False
    handler.answer(206, data[start - 1 :], {"Content-Range": f"bytes {start - 1}-{len(data) - 1}/{len(data)}"})
    return True


def no_ranges(handler: Handler, data: bytes, start: int) -> bool:
    """The whole value for a range."""
    handler.answer(200, data)
    return True


def redirect(handler: Handler, data: bytes, start: int) -> bool:
    """To a presigned address."""
    handler.answer(302, b"", {"Location": f"/signed{handler.path}?signature=x"})
    return True


def redirect_for_ever(handler: Handler, data: bytes, start: int) -> bool:
    """To itself."""
    handler.server.faults.insert(0, redirect_for_ever)
    handler.answer(302, b"", {"Location": handler.path})
    return True


def slowly(seconds: float) -> Fault:
    """The right answer, after a while."""

    def fault(handler: Handler, data: bytes, start: int) -> bool:
        time.sleep(seconds)
        return False

    return fault


def hang_up(handler: Handler, data: bytes, start: int) -> bool:
    """No answer at all."""
    handler.close_connection = True
    handler.connection.close()
    return True
