"""Limits the size of request bodies, by the announced length and by the bytes that arrive."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodySizeLimitMiddleware:
    """ASGI middleware: reading a body of more than its path's limit raises an HTTPException with status 413."""

    def __init__(self, app: ASGIApp, limit: int, paths: Mapping[str, int]) -> None:
        """`limit` is in bytes, for all paths but those in `paths`."""
        self._app, self._limit, self._paths = app, limit, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._paths.get(scope["path"].removeprefix(scope.get("root_path", "")), self._limit)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        arrived = int(announced) if announced.isdigit() else 0
        if arrived <= limit:
            arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            if arrived <= limit:
                message = await receive()
                arrived += len(message.get("body", b""))
            if arrived > limit:
                raise HTTPException(413, f"the body is larger than {limit} bytes")
            return message

        await self._app(scope, counted, send)
