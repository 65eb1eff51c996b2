"""An answer that is no success: which, why, and when to come again."""

from __future__ import annotations

import math

from starlette.responses import JSONResponse, Response

from serve.log import log_event, request_id
from serve.schemas import Code, ErrorDetail, ErrorResponse
from tinymusician.errors import NotFoundError, RequestError, TinyMusicianError


class ApiError(Exception):
    """An HTTP status with its reason; `wait` is in how many seconds it may go otherwise."""

    def __init__(self, status: int, code: Code, message: str, field: str | None = None, wait: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.field, self.wait = status, code, message, field, wait

    def failure(self, request_id: str) -> ErrorResponse:
        """The answer's body."""
        return ErrorResponse(
            error=ErrorDetail(code=self.code, message=self.message, field=self.field, request_id=request_id)
        )

    @property
    def headers(self) -> dict[str, str]:
        """The answer's headers."""
        headers = {"Retry-After": str(max(1, math.ceil(self.wait)))} if self.wait else {}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def answer(error: Exception) -> Response:
    """The answer for whatever went wrong."""
    if isinstance(error, TinyMusicianError):
        error = refused(error)
    if not isinstance(error, ApiError):
        log_event("unforeseen", error=f"{type(error).__name__}: {error}")
        error = ApiError(500, "failed", "something went wrong here; the log says what")
    return JSONResponse(error.failure(request_id.get()).model_dump(), error.status, headers=error.headers)


def refused(error: TinyMusicianError) -> ApiError:
    """What an error of ours is to a client: its own fault, or ours."""
    message = " ".join(str(error).split())
    if isinstance(error, RequestError):
        field = message.partition(":")[0].partition(" ")[0]
        return ApiError(422, "invalid", message, field)
    if isinstance(error, NotFoundError):
        return ApiError(404, "not_found", message)
    return ApiError(503, "failed", message, wait=5)
