"""Errors as HTTP responses."""

from __future__ import annotations

import math

from starlette.responses import JSONResponse, Response

from serve.log import log_event, request_id
from serve.schemas import ErrorCode, ErrorDetail, ErrorResponse
from tinymusician.errors import NotFoundError, RequestError, TinyMusicianError


class ApiError(Exception):
    """An error with its HTTP status; `retry_after` is the time in seconds after which a retry may succeed."""

    def __init__(
        self, status: int, code: ErrorCode, message: str, field: str | None = None, retry_after: float = 0.0
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.field, self.retry_after = status, code, message, field, retry_after

    def body(self, request_id: str) -> ErrorResponse:
        """The response body."""
        return ErrorResponse(
            error=ErrorDetail(code=self.code, message=self.message, field=self.field, request_id=request_id)
        )

    @property
    def headers(self) -> dict[str, str]:
        """The response headers."""
        headers = {"Retry-After": str(max(1, math.ceil(self.retry_after)))} if self.retry_after else {}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def error_response(error: Exception) -> Response:
    """The response to any exception."""
    if isinstance(error, TinyMusicianError):
        error = request_error(error)
    if not isinstance(error, ApiError):
        log_event("unexpected_error", error=f"{type(error).__name__}: {error}")
        error = ApiError(500, "failed", "internal error; see the endpoint's log")
    return JSONResponse(error.body(request_id.get()).model_dump(), error.status, headers=error.headers)


def request_error(error: TinyMusicianError) -> ApiError:
    """An error of the library as an API error: 422 or 404 if the client caused it, otherwise 503."""
    message = " ".join(str(error).split())
    if isinstance(error, RequestError):
        return ApiError(422, "invalid", message, error.field)
    if isinstance(error, NotFoundError):
        return ApiError(404, "not_found", message)
    return ApiError(503, "failed", message, retry_after=5)
