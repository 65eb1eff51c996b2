"""Which requests an endpoint without API keys accepts: those of this machine, by their `Host` and `Origin`.

A web page of another site can make its name resolve to 127.0.0.1 (DNS rebinding); its requests then come from this
machine, and say that site's name in `Host`. It can also send a form to 127.0.0.1; the browser then says its `Origin`.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.config import is_loopback
from serve.errors import ApiError, error_response

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^][:/@,\s]+))(?::[0-9]{1,5})?")


class LoopbackHostMiddleware:
    """ASGI middleware: refuses requests whose Host or Origin is neither localhost nor an address of the loopback.

    `allowed_origins` are those of other sites whose pages may use the endpoint.
    """

    def __init__(self, app: ASGIApp, allowed_origins: Collection[str] = ()) -> None:
        self._app, self._allowed_origins = app, allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and (
            problem := _problem(Headers(scope=scope), self._allowed_origins)
        ):
            await error_response(ApiError(400, "malformed", problem))(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _problem(headers: Headers, allowed_origins: Collection[str]) -> str:
    """Why a request is not accepted; empty if it is."""
    allowed = "without API keys, only localhost and addresses of the loopback are accepted"
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not _is_here(hosts[0]):
        return f"Host {', '.join(hosts)[:60]!r}: {allowed}"
    origin = headers.get("origin")
    if origin is not None and origin not in allowed_origins and not _is_here(re.sub(r"^https?://", "", origin)):
        return f"Origin {origin[:60]!r}: {allowed}"
    return ""


def _is_here(host: str) -> bool:
    """Whether a host, with or without a port, is this machine."""
    match = _HOST.fullmatch(host)
    return match is not None and is_loopback((match[1] or match[2]).lower())
