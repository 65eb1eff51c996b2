"""No body is larger than allowed: refused by its announced length, or when it turns out to be longer."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodySizeLimitMiddleware:
    """An ASGI middleware: whoever reads a body of more than `most` bytes meets an HTTPException with status 413."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        arrived = int(announced) if announced.isdigit() else 0
        if arrived <= self._most:
            arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            if arrived <= self._most:
                message = await receive()
                arrived += len(message.get("body", b""))
            if arrived > self._most:
                raise HTTPException(413, f"the body is larger than {self._most} bytes")
            return message

        await self._app(scope, counted, send)
