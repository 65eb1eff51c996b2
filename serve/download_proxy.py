"""Sends bundle files through Ray Serve's HTTP proxy in pieces, each asked for when the client has taken the one before.

Ray sends what a replica yields to its proxy at once, whether the client reads or not: a client that asks for 200 MB and
reads nothing would cost the proxy 200 MB. Here the proxy itself asks the application for one range after another, and
limits how many downloads are under way until they have left.

Ray loads `middlewares` in the proxy's process if RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.byte_range import ByteRange, content_range, parse_range
from serve.errors import ApiError, error_response

PREFIX = "/v1/bundles/"
MAX_DOWNLOADS = 4
"""Downloads that are under way in a proxy, until the client has everything."""
PIECE = 4 << 20
"""Bytes that are asked for at once."""
PIECE_SECONDS = 120.0
"""Time for a client to take a piece; a slower one is cut off, and can resume with `Range`."""
FOLLOWING = b"x-tinymusician-following-piece"
"""The header of the requests for later pieces: they are not counted, nor refused while the endpoint stops."""
RUNNING = b"x-downloads"
"""The header of `/ready` with the number of downloads that are under way."""
_RETRY_SECONDS = 5.0


def middlewares() -> list[Middleware]:
    """What Ray Serve's proxy puts in front of its applications."""
    return [Middleware(DownloadMiddleware)]


class DownloadMiddleware:
    """ASGI middleware for `GET /v1/bundles/…`."""

    def __init__(
        self, app: ASGIApp, max_downloads: int = MAX_DOWNLOADS, piece: int = PIECE, seconds: float = PIECE_SECONDS
    ) -> None:
        self._app, self._max_downloads, self._piece, self._seconds = app, max_downloads, piece, seconds
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = _without(scope, FOLLOWING)
        if scope["method"] != "GET" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, self._counted(send) if scope["path"] == "/ready" else send)
            return
        if self._running >= self._max_downloads:
            message = f"{self._max_downloads} downloads are under way"
            await error_response(ApiError(429, "busy", message, retry_after=_RETRY_SECONDS))(scope, receive, send)
            return
        self._running += 1
        client = _Client(receive)
        watcher = asyncio.create_task(client.watch())
        try:
            await self._download(scope, client, send)
        finally:
            watcher.cancel()
            self._running -= 1

    async def _download(self, scope: Scope, client: _Client, send: Send) -> None:
        """Answer with the whole file, or with the range that was asked for.

        The last bytes of a file (`bytes=-500`), whose place is not known before its size, are not cut out: servers may
        ignore `Range`.
        """
        requested = _requested(scope)
        begin, limit = (requested or ByteRange())[:2]
        total = _Total(begin, limit, is_partial=requested is not None)
        while not client.is_gone:
            first = total.next
            stop = first + self._piece if limit is None else min(limit, first + self._piece)
            relay = _Relay(send, total)
            async with asyncio.timeout(self._seconds):
                await self._app(_with_range(scope, first, stop, total.is_started), client.request(), relay)
            if relay.is_empty:  # an empty file has no first piece
                await self._app(_without(scope, b"range"), client.request(), send)
                return
            if relay.is_final:
                return
            if total.next >= total.stop:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            if total.next == first:
                raise ConnectionError("a piece of a download is empty")

    def _counted(self, send: Send) -> Send:
        """Adds the number of downloads to a response."""

        async def send_with_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (RUNNING, str(self._running).encode())]}
            await send(message)

        return send_with_count


class _Client:
    """What a client sends: its request, which has no body, for every piece; and that it has gone."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._gone = receive, asyncio.Event()

    @property
    def is_gone(self) -> bool:
        """Whether it has closed the connection."""
        return self._gone.is_set()

    async def watch(self) -> None:
        """Wait until it has gone; nothing else receives from it."""
        while (await self._receive())["type"] != "http.disconnect":
            pass  # the request itself
        self._gone.set()

    def request(self) -> Receive:
        """Its messages, from the beginning of the request."""
        messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await self._gone.wait()
            return {"type": "http.disconnect"}

        return receive


class _Total:
    """How far a download is: the next byte, and the one after the last, once the size is known."""

    def __init__(self, start: int, limit: int | None, is_partial: bool) -> None:
        self.start, self.next, self.limit, self.is_partial = start, start, limit, is_partial
        self.stop, self.is_started = 0, False

    def begin(self, header: str) -> tuple[int, str]:
        """Take the size from the first piece; returns the status and `Content-Range` of the whole response."""
        size = int(header.rpartition("/")[2])
        self.stop, self.is_started = size if self.limit is None else min(size, self.limit), True
        return (206, content_range(self.start, self.stop, size)) if self.is_partial else (200, "")


class _Relay:
    """Passes the messages of one piece on: the first piece's start becomes that of the whole response.

    Raises:
        ConnectionError: a later piece is refused; the connection breaks, so that the client knows.
    """

    def __init__(self, send: Send, total: _Total) -> None:
        self._send, self._total = send, total
        self.is_final = self.is_empty = False

    async def __call__(self, message: Message) -> None:
        if message["type"] != "http.response.start":
            await self._body(message)
        elif message["status"] == 206:
            await self._begin(message)
        elif self._total.is_started:
            raise ConnectionError(f"a piece of a download got status {message['status']}")
        elif message["status"] == 416 and not self._total.is_partial:
            self.is_empty = True
        else:
            self.is_final = True
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        if self._total.is_started:
            return
        headers = MutableHeaders(raw=list(message["headers"]))
        status, said = self._total.begin(headers["content-range"])
        headers["content-length"] = str(self._total.stop - self._total.start)
        if said:
            headers["content-range"] = said
        else:
            del headers["content-range"]
        await self._send({**message, "status": status, "headers": headers.raw})

    async def _body(self, message: Message) -> None:
        if self.is_final:
            await self._send(message)
        elif body := message.get("body", b""):
            self._total.next += len(body)
            await self._send({"type": "http.response.body", "body": body, "more_body": True})


def _requested(scope: Scope) -> ByteRange | None:
    """The range that is asked for; None for the whole file."""
    headers = Headers(scope=scope)
    tag = f'"{scope["path"].removeprefix(PREFIX).partition("/")[0]}"'
    part = parse_range(headers.get("range")) if headers.get("if-range", tag) == tag else None
    return None if part is None or part.suffix is not None else part


def _without(scope: Scope, *names: bytes) -> Scope:
    return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name not in names]}


def _with_range(scope: Scope, start: int, stop: int, is_following: bool) -> Scope:
    """The request for one piece."""
    headers = [*_without(scope, b"range", b"if-range")["headers"], (b"range", f"bytes={start}-{stop - 1}".encode())]
    return {**scope, "headers": [*headers, (FOLLOWING, b"1")] if is_following else headers}
