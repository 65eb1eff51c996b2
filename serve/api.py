"""The HTTP API as a FastAPI application; `GET /openapi.json` describes it.

This module does not postpone annotations: FastAPI evaluates those of nested functions.
"""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from fastapi import Body, Depends, FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Scope

from serve.api_keys import ApiKey
from serve.body_size import AuthenticationMiddleware, BodyDeadlineMiddleware, BodySizeLimitMiddleware, path_of
from serve.config import RequestLimits
from serve.encoders import MEDIA_TYPES
from serve.errors import ApiError, error_response
from serve.host_check import LoopbackHostMiddleware
from serve.ingress import Ingress
from serve.request_id import RequestIdMiddleware
from serve.schemas import AudioAnswers, CreateAudioRequest, ErrorCode, ErrorResponse, ModelList
from tinymusician.errors import TinyMusicianError
from tinymusician.json_types import JsonObject

_EXPOSED = (
    "Accept-Ranges",
    "Content-Range",
    "ETag",
    "Retry-After",
    "X-Adherence",
    "X-Bundle",
    "X-Bundle-Version",
    "X-Real-Time-Factor",
    "X-Request-Id",
    "X-Seed",
    "X-Unknown-Words",
)
"""Headers of responses that a page of an allowed origin can read."""
_CODES: dict[int, ErrorCode] = {
    400: "malformed",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "too_large",
}
_GENERATIONS, _QUESTIONS = "/v1/audio/generations", "/v1/audio/questions"
_PAGE = Path(__file__).parent / "page"
_DESCRIPTIONS = {
    400: "The body is not JSON.",
    401: "The API key is missing or invalid.",
    404: "Not found, or the endpoint serves this bundle no more.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    422: "A value is not allowed; `field` says which.",
    429: "Too many requests, of this key or in all; retry after `Retry-After` seconds.",
    500: "Internal error.",
    503: "No engine is ready, or the engine failed.",
    504: "The request timed out.",
}
_EXAMPLES = {
    "short": {"summary": "A prompt only", "value": {"prompt": "a fast fiddle reel", "seconds": 2}},
    "stream": {
        "summary": "FLAC, streamed; the same seed gives the same music",
        "value": {"prompt": "a slow waltz for flute", "seconds": 2, "seed": 7, "format": "flac", "stream": True},
    },
    "steered": {
        "summary": "Guidance and a negative prompt",
        "value": {"prompt": "a happy march", "seconds": 2, "guidance": 4, "negative_prompt": "a sad waltz"},
    },
}


def _error_responses(*statuses: int) -> dict[int | str, JsonObject]:
    return {status: {"model": ErrorResponse, "description": _DESCRIPTIONS[status]} for status in statuses}


_AUDIO: dict[int | str, JsonObject] = {
    200: {
        "description": "The audio. `X-Seed` is its seed; `X-Bundle` is the digest of the bundle that generated it; "
        "`X-Unknown-Words` are the words that the model does not know, percent-encoded.",
        "content": {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA_TYPES.values()},
    }
}
_FILE: dict[int | str, JsonObject] = {
    200: {
        "description": "The file. Check it against its SHA-256 in `manifest.json`; the digest is that of the manifest.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    206: {"description": "The bytes that the header `Range` asks for."},
    416: {"description": "The file has none of the bytes that the header `Range` asks for."},
}


class _PageFiles(StaticFiles):
    """The page's files, which browsers revalidate by their ETag."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"
        return response


# Long: its routes are nested functions, which share the ingress.
def create_app(
    ingress: Ingress, limits: RequestLimits, has_request_id: bool = False, allowed_origins: Sequence[str] = ()
) -> FastAPI:
    """The application; with `has_request_id`, the server in front of it adds request ids to responses.

    Pages of the `allowed_origins` may use it from browsers (CORS), without cookies.
    """
    app = FastAPI(
        title="TinyMusician",
        version=version("tinymusician"),
        description="Text to music from a small, signed bundle, the same that phones and browsers run.",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere; page/docs has its own
        redoc_url=None,
        servers=[{"url": ".", "description": "this endpoint, also behind a proxy's path"}],
    )
    bearer = HTTPBearer(auto_error=False, description="`tmctl api-keys create NAME` makes a key.")

    def authenticate(
        request: Request, _shown: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
    ) -> ApiKey | None:
        return ingress.authenticate(request.headers.get("Authorization"))

    Key = Annotated[ApiKey | None, Depends(authenticate)]

    @app.post(
        _GENERATIONS,
        response_class=Response,
        responses=_AUDIO | _error_responses(400, 401, 408, 413, 422, 429, 500, 503, 504),
        summary="Generate audio",
    )
    async def generate(body: Annotated[CreateAudioRequest, Body(openapi_examples=_EXAMPLES)], key: Key) -> Response:
        return await ingress.generate(body, key)

    @app.post(
        _QUESTIONS,
        responses=_error_responses(400, 401, 404, 408, 413, 422, 429, 500, 503, 504),
        summary="Answer questions about audio",
    )
    async def ask(
        request: Request,
        file: Annotated[UploadFile, File(description="The audio: any format, rate and number of channels.")],
        key: Key,
        question: Annotated[str | None, Form(description="By default, those about all attributes.")] = None,
        options: Annotated[list[str], Form(description="Possible answers; 2 to 50, or none.")] = [],  # noqa: B006
    ) -> AudioAnswers:
        if (await request.form()).get("question") == "":  # FastAPI takes an empty field for an absent one
            question = ""
        return await ingress.ask(file.read, file.filename or "", question, options, key)

    @app.get(
        "/v1/models",
        dependencies=[Depends(authenticate)],
        responses=_error_responses(401, 503),
        summary="Describe the loaded bundle",
    )
    async def models() -> ModelList:
        return await ingress.models()

    @app.head("/v1/bundles/{digest}/{path:path}", include_in_schema=False)
    @app.get(
        "/v1/bundles/{digest}/{path:path}",
        response_class=Response,
        responses=_FILE | _error_responses(401, 404, 429, 503),
        summary="Download a file of the loaded bundle",
    )
    async def file(request: Request, digest: str, path: str, key: Key) -> Response:
        return await ingress.file(digest, path, request.headers, request.method == "HEAD", key)

    @app.head("/live", include_in_schema=False)
    @app.get("/live", summary="Liveness")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", responses=_error_responses(503), summary="Readiness: an engine is warm")
    async def ready(response: Response) -> dict[str, str]:
        (model,) = (await ingress.models()).data
        response.headers["X-Bundle"] = model.digest
        return {"status": "ready"}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> RedirectResponse:
        return RedirectResponse("docs/")  # relative, so also behind a proxy's path

    app.mount("/", _PageFiles(directory=_PAGE, html=True))
    _add_error_handlers(app)
    app.add_middleware(BodyDeadlineMiddleware, seconds=limits.body_timeout_s)
    app.add_middleware(BodySizeLimitMiddleware, limit=limits.body, paths={_QUESTIONS: limits.upload})
    app.add_middleware(AuthenticationMiddleware, paths=(_GENERATIONS, _QUESTIONS), authenticate=ingress.authenticate)
    if not ingress.has_api_keys:
        app.add_middleware(LoopbackHostMiddleware, allowed_origins=allowed_origins)
    if allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=allowed_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["Authorization", "Content-Type", "If-Range", "Range"],
            expose_headers=_EXPOSED,
            max_age=600,
        )
    app.add_middleware(RequestIdMiddleware, metrics=ingress.metrics, has_request_id=has_request_id)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    """Every error has the same form."""

    @app.exception_handler(ApiError)
    @app.exception_handler(TinyMusicianError)
    async def ours(_request: Request, error: Exception) -> Response:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def http(_request: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "invalid")
        return error_response(ApiError(error.status_code, code, str(error.detail)))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        if "content-type" not in request.headers:
            needed = "multipart/form-data" if path_of(request.scope) == _QUESTIONS else "application/json"
            message = f"Content-Type: is missing; {needed} is needed"
            return error_response(ApiError(422, "invalid", message, "Content-Type"))
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"] if part != "body")
        if problem["type"] == "json_invalid":
            return error_response(ApiError(400, "malformed", "the body is not JSON"))
        message = f"{where or 'body'}: {problem['msg']}"
        return error_response(ApiError(422, "invalid", message, where or None))
