"""Every request has an id, which its answer bears and every line of the logs about it; those for audio are counted."""

from __future__ import annotations

import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import ApiError, answer
from serve.log import log_event, request_id
from serve.metrics import IngressMetrics

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
AUDIO = "/v1/audio/"
_GUARDS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; "
    "img-src 'self' data:; media-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Nothing of the page comes from elsewhere; isolated as it is, the browser lets it use threads."""
_LEFT = "499"
"""What nginx logs for a client that left before it had an answer."""


class RequestIdMiddleware:
    """An ASGI middleware. A client may choose the id, in `X-Request-Id`."""

    def __init__(self, app: ASGIApp, metrics: IngressMetrics, marked: bool) -> None:
        """With `marked` the server before this one sets the answer's `X-Request-Id` (Ray Serve does)."""
        self._app, self._metrics = app, metrics
        self._marked = marked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("X-Request-Id", "")
        request_id.set(given if _ID.fullmatch(given) else uuid.uuid4().hex)
        began, status = time.monotonic(), _LEFT
        headers = {} if self._marked else {"X-Request-Id": request_id.get()}

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                MutableHeaders(scope=message).update({**headers, **_GUARDS})
            await send(message)

        try:
            if given and not _ID.fullmatch(given):
                raise ApiError(400, "malformed", "X-Request-Id: up to 64 letters, digits, dots, dashes are allowed")
            await self._app(scope, receive, marked)
        except Exception as error:
            if status != _LEFT:  # the answer has begun: it is broken off
                raise
            await answer(error)(scope, receive, marked)
        finally:
            if scope["path"].startswith(AUDIO):
                self._metrics.requests.inc(tags={"status": status})
                log_event("answered", status=status, path=scope["path"], seconds=round(time.monotonic() - began, 3))
