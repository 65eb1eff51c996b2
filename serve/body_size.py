"""Limits the size of request bodies, by the announced length and by the bytes that arrive."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodySizeLimitMiddleware:
    """ASGI middleware: reading a body of more than `limit` bytes raises an HTTPException with status 413."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        arrived = int(announced) if announced.isdigit() else 0
        if arrived <= self._limit:
            arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            if arrived <= self._limit:
                message = await receive()
                arrived += len(message.get("body", b""))
            if arrived > self._limit:
                raise HTTPException(413, f"the body is larger than {self._limit} bytes")
            return message

        await self._app(scope, counted, send)
