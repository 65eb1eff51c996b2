"""Which Host header is accepted without API keys: that of this machine.

A web page of another site can make its name resolve to 127.0.0.1 (DNS rebinding); its requests then come from this
machine, and say that site's name in `Host`.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.config import is_loopback
from serve.errors import ApiError, error_response


class LoopbackHostMiddleware:
    """ASGI middleware: refuses requests whose Host is neither localhost nor an address of this machine's loopback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
            if len(hosts) != 1 or not is_loopback(_name(hosts[0])):
                message = "Host: without API keys, only 127.0.0.1, localhost and [::1] are accepted"
                await error_response(ApiError(400, "malformed", message))(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _name(host: str) -> str:
    """The name or address in a Host header, without its port; empty if it has none."""
    try:
        parts = urlsplit(f"//{host}")
        return (parts.hostname or "") if parts.netloc == host and "@" not in host else ""
    except ValueError:
        return ""
