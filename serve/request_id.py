"""Adds a request id to each response and log line, sets security headers, and counts audio requests."""

from __future__ import annotations

import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import ApiError, error_response
from serve.log import log_event, request_id
from serve.metrics import IngressMetrics

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
AUDIO = "/v1/audio/"
_SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; "
    "img-src 'self' data:; media-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""The page loads nothing from other origins. Cross-origin isolation lets the browser give it threads."""
_CLIENT_CLOSED = "499"
"""nginx's status for a client that disconnected before the response."""


class RequestIdMiddleware:
    """ASGI middleware. A client may set the id in `X-Request-Id`."""

    def __init__(self, app: ASGIApp, metrics: IngressMetrics, has_request_id: bool) -> None:
        """With `has_request_id`, the server in front sets the response's `X-Request-Id` (Ray Serve does)."""
        self._app, self._metrics = app, metrics
        self._has_request_id = has_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("X-Request-Id", "")
        request_id.set(given if _ID.fullmatch(given) else uuid.uuid4().hex)
        began, status = time.monotonic(), _CLIENT_CLOSED
        headers = {} if self._has_request_id else {"X-Request-Id": request_id.get()}

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                MutableHeaders(scope=message).update({**headers, **_SECURITY_HEADERS})
            await send(message)

        try:
            if given and not _ID.fullmatch(given):
                raise ApiError(400, "malformed", "X-Request-Id: up to 64 letters, digits, dots, dashes are allowed")
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            if status != _CLIENT_CLOSED:  # the response has started: abort it
                raise
            await error_response(error)(scope, receive, send_with_headers)
        finally:
            if scope["path"].startswith(AUDIO):
                self._metrics.requests.inc(tags={"status": status})
                log_event("response", status=status, path=scope["path"], seconds=round(time.monotonic() - began, 3))
