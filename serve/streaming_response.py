"""A response whose body is sent while it is produced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class AudioStreamingResponse(StreamingResponse):
    """A response whose body is sent while it is produced."""

    def __init__(
        self,
        body: AsyncIterator[bytes],
        headers: dict[str, str],
        media_type: str,
        on_end: Callable[[], None],
        timeout: float,
        status: int = 200,
    ) -> None:
        """`on_end` is called however the response ends; it is aborted after `timeout` seconds."""
        super().__init__(body, status, headers, media_type)
        self._on_end, self._timeout = on_end, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await super().__call__(scope, receive, send)
        finally:
            self._on_end()
