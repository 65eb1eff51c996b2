"""What is decided before a request's body has been read: its largest size, its time, and who may upload."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import ApiError, error_response


class AuthenticationMiddleware:
    """ASGI middleware: authenticates before a body is received on these paths, so a stranger's costs nothing."""

    def __init__(self, app: ASGIApp, paths: Collection[str], authenticate: Callable[[str | None], object]) -> None:
        """`authenticate` gets the Authorization header, and raises `ApiError` for one that is not accepted."""
        self._app, self._paths, self._authenticate = app, paths, authenticate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and path_of(scope) in self._paths:
            header = dict(scope["headers"]).get(b"authorization")
            try:
                self._authenticate(None if header is None else header.decode("latin-1"))
            except ApiError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def path_of(scope: Scope) -> str:
    """A request's path within the application."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


class BodySizeLimitMiddleware:
    """ASGI middleware: reading a body of more than its path's limit raises an HTTPException with status 413."""

    def __init__(self, app: ASGIApp, limit: int, paths: Mapping[str, int]) -> None:
        """`limit` is in bytes, for all paths but those in `paths`."""
        self._app, self._limit, self._paths = app, limit, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._paths.get(path_of(scope), self._limit)
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


class BodyDeadlineMiddleware:
    """ASGI middleware: a body that has not arrived in time raises an HTTPException with status 408."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        deadline, has_all = asyncio.get_running_loop().time() + self._seconds, False

        async def in_time() -> Message:
            nonlocal has_all
            if has_all:  # the client's disconnection, which may be much later
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body has not arrived within {self._seconds:g} seconds") from None
            has_all = not message.get("more_body", False)
            return message

        await self._app(scope, in_time, send)
