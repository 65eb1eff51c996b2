"""The endpoint's addresses, as a FastAPI application; its OpenAPI document is `GET /openapi.json`.

Annotations are evaluated here: FastAPI reads those of functions within a function.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from serve.api_keys import ApiKey
from serve.body_size import BodySizeLimitMiddleware
from serve.config import RequestLimits
from serve.encoders import MEDIA_TYPES
from serve.errors import ApiError, answer
from serve.ingress import Ingress
from serve.request_id import RequestIdMiddleware
from serve.schemas import Code, CreateAudioRequest, ErrorResponse, ModelList
from tinymusician.errors import TinyMusicianError

_CODES: dict[int, Code] = {400: "malformed", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}
_PAGE = Path(__file__).parent / "page"
_WHY = {
    400: "The body is no JSON.",
    401: "No API key, or none that counts.",
    404: "Nothing lies there, or another bundle plays by now.",
    413: "The body is too large.",
    422: "A value is not allowed; `field` says which.",
    429: "Too many requests, of this key or of all; `Retry-After` says when to come again.",
    500: "A fault of the endpoint.",
    503: "No engine is ready, or playing failed.",
    504: "It took too long.",
}
_EXAMPLES = {
    "short": {"summary": "A prompt is enough", "value": {"prompt": "a fast fiddle reel", "seconds": 2}},
    "stream": {
        "summary": "FLAC, sent while it is made; the same seed gives the same music",
        "value": {"prompt": "a slow waltz for flute", "seconds": 2, "seed": 7, "format": "flac", "stream": True},
    },
    "steered": {
        "summary": "Closer to the prompt, and away from another",
        "value": {"prompt": "a happy march", "seconds": 2, "guidance": 4, "negative_prompt": "a sad waltz"},
    },
}


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorResponse, "description": _WHY[status]} for status in statuses}


_AUDIO: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The audio. `X-Seed` plays it again; `X-Bundle` is the digest of the bundle that played it.",
        "content": {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA_TYPES.values()},
    }
}
_FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Its bytes, to be checked against the SHA-256 in `manifest.json`, whose own is the digest.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def create_app(front: Ingress, limits: RequestLimits, marked: bool = False) -> FastAPI:
    """The application; `marked` says that the server before it gives answers their request's id."""
    app = FastAPI(
        title="TinyMusician",
        version=version("tinymusician"),
        description="Text to music from one small, signed bundle: the same that phones and browsers play.",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
    )
    bearer = HTTPBearer(auto_error=False, description="`tmctl api-keys create NAME` makes a key.")

    def authenticate(
        request: Request, _shown: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
    ) -> ApiKey | None:
        return front.authenticate(request.headers.get("Authorization"))

    Key = Annotated[ApiKey | None, Depends(authenticate)]

    @app.post(
        "/v1/audio/generations",
        response_class=Response,
        responses=_AUDIO | _failures(400, 401, 413, 422, 429, 500, 503, 504),
        summary="Play a prompt",
    )
    async def generate(body: Annotated[CreateAudioRequest, Body(openapi_examples=_EXAMPLES)], key: Key) -> Response:
        return await front.generate(body, key)

    @app.get(
        "/v1/models", dependencies=[Depends(authenticate)], responses=_failures(401, 503), summary="Which bundle plays"
    )
    async def models() -> ModelList:
        return await front.models()

    @app.get(
        "/v1/bundles/{digest}/{path:path}",
        response_class=Response,
        responses=_FILE | _failures(401, 404, 429, 503),
        summary="A file of the bundle that plays",
    )
    async def file(digest: str, path: str, key: Key) -> Response:
        return await front.file(digest, path, key)

    @app.head("/live", include_in_schema=False)
    @app.get("/live", summary="Whether the endpoint answers at all")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", responses=_failures(503), summary="Whether an engine has warmed up")
    async def ready() -> dict[str, str]:
        await front.models()
        return {"status": "ready"}

    app.mount("/", StaticFiles(directory=_PAGE, html=True))
    _answer_failures(app)
    app.add_middleware(BodySizeLimitMiddleware, most=limits.body)
    app.add_middleware(RequestIdMiddleware, metrics=front.metrics, marked=marked)
    return app


def _answer_failures(app: FastAPI) -> None:
    """Every failure looks alike."""

    @app.exception_handler(ApiError)
    @app.exception_handler(TinyMusicianError)
    async def ours(_request: Request, error: Exception) -> Response:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def http(_request: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "invalid")
        return answer(ApiError(error.status_code, code, str(error.detail)))

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"] if part != "body")
        if problem["type"] == "json_invalid":
            return answer(ApiError(400, "malformed", "the body is no JSON"))
        message = f"{where or 'body'}: {problem['msg']}"
        return answer(ApiError(422, "invalid", message, where or None))
