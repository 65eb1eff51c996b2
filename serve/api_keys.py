"""API keys: a file of their hashes, with a rate limit and a concurrency limit per key.

A key is `tm_ID_SECRET` with 256 random bits, so one round of SHA-256 protects it. The file never contains the secret.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from tinymusician.artifacts.atomic import atomic_write, lock_file, open_lock
from tinymusician.errors import KeyFileError
from tinymusician.user_folders import user_folder

_KEY_PATTERN = re.compile(r"tm_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
FOREVER = 100 * 365


class ApiKey(BaseModel):
    """A stored key: the `sha256` of its text, its name and its limits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: AwareDatetime
    expires: AwareDatetime
    per_minute: Annotated[int, Field(ge=1)]
    max_concurrency: Annotated[int, Field(ge=1)]


class KeyFile(BaseModel):
    """The content of a key file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[ApiKey, ...] = ()


def default_file() -> Path:
    """The default key file of `tmctl api-keys`."""
    return user_folder("config") / "api-keys.json"


def read_keys(path: Path) -> KeyFile:
    """The keys of a file.

    Raises:
        KeyFileError: it is missing, cannot be read, or holds something else.
    """
    try:
        return KeyFile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise KeyFileError(f"API keys {path}: there is no such file; `tmctl api-keys create NAME` makes it") from None
    except OSError as error:
        raise KeyFileError(f"API keys {path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "content"
        raise KeyFileError(f"API keys {path}: {where}: {problem['msg']}") from None


def write_keys(path: Path, keys: KeyFile) -> None:
    """Replace the file atomically, with mode 600."""
    with atomic_write(path, 0o600) as draft:
        draft.write_text(keys.model_dump_json(indent=2) + "\n")


@contextlib.contextmanager
def edit_keys(path: Path, missing: bool = False) -> Iterator[list[ApiKey]]:
    """Edit the keys of a file under a lock: the list is written back if the block ends without an error.

    Raises:
        KeyFileError: the file is malformed, or it does not exist and `missing` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_lock(path.with_name(f".{path.name}.lock")) as lock:
        lock_file(lock)
        keys = [] if missing and not path.exists() else list(read_keys(path).keys)
        yield keys
        write_keys(path, KeyFile(keys=tuple(keys)))


def new_key(name: str, per_minute: int, max_concurrency: int, days: int | None) -> tuple[str, ApiKey]:
    """A new key: its text, which is shown once, and its stored form."""
    number, created = secrets.token_hex(4), datetime.now(UTC).replace(microsecond=0)
    text = f"tm_{number}_{secrets.token_urlsafe(32)}"
    return text, ApiKey(
        id=number,
        name=name,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        created=created,
        expires=created + timedelta(days=FOREVER if days is None else days),
        per_minute=per_minute,
        max_concurrency=max_concurrency,
    )


class AuthenticationError(Exception):
    """The key is missing, unknown, expired or revoked."""


class RateLimitError(Exception):
    """The key's rate or concurrency limit is reached; `retry_after` is the time in seconds after which to retry."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ApiKeyAuthenticator:
    """Checks requests' keys. It reloads the file when it changes, so a key can be revoked at any time."""

    def __init__(
        self,
        path: Path | None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Without a file, no key is needed.

        Raises:
            KeyFileError: the file cannot be read as a key file.
        """
        self._path, self._clock, self._now = path, clock, now
        self._stamp: tuple[int, int, int] | None = None
        self._keys: dict[str, ApiKey] = {}
        self._budgets: dict[str, tuple[float, float]] = {}
        self._running: dict[str, int] = {}
        if path is not None:
            self._load(path)

    def authenticate(self, authorization: str | None) -> ApiKey | None:
        """The key of an `Authorization: Bearer KEY` header; None where none is needed.

        Raises:
            AuthenticationError: the key is missing, unknown or expired, or the file cannot be read.
        """
        if self._path is None:
            return None
        self._refresh(self._path)
        scheme, _, text = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise AuthenticationError("an API key is needed, in the header `Authorization: Bearer KEY`")
        form = _KEY_PATTERN.fullmatch(text.strip())
        key = self._keys.get(form[1]) if form else None
        digest = hashlib.sha256(text.strip().encode()).hexdigest()
        if key is None or not hmac.compare_digest(digest, key.sha256):
            raise AuthenticationError("this API key is unknown")
        if key.expires <= self._now():
            raise AuthenticationError(f"this API key expired on {key.expires:%Y-%m-%d}")
        return key

    @contextlib.contextmanager
    def slot(self, key: ApiKey | None) -> Iterator[None]:
        """Occupy one of the key's concurrent requests until the block ends.

        Raises:
            RateLimitError: the key's rate or concurrency limit is reached.
        """
        if key is None:
            yield
            return
        if self._running.get(key.id, 0) >= key.max_concurrency:
            raise RateLimitError(f"this API key allows {key.max_concurrency} concurrent requests", 1.0)
        self._take_token(key)
        self._running[key.id] = self._running.get(key.id, 0) + 1
        try:
            yield
        finally:
            self._running[key.id] -= 1

    def _take_token(self, key: ApiKey) -> None:
        """Token bucket: refilled with `per_minute` tokens a minute, with a capacity of as many."""
        moment, rate = self._clock(), key.per_minute / 60
        tokens, since = self._budgets.get(key.id, (float(key.per_minute), moment))
        left = min(float(key.per_minute), tokens + (moment - since) * rate)
        if left < 1:
            self._budgets[key.id] = left, moment
            raise RateLimitError(f"this API key allows {key.per_minute} requests per minute", (1 - left) / rate)
        self._budgets[key.id] = left - 1, moment

    def _refresh(self, path: Path) -> None:
        try:
            self._load(path)
        except KeyFileError as error:
            self._keys, self._stamp = {}, None
            raise AuthenticationError("the endpoint cannot read its key file") from error

    def _load(self, path: Path) -> None:
        try:
            info = path.stat()
        except OSError as error:
            raise KeyFileError(f"API keys {path}: {error.strerror}; `tmctl api-keys create NAME` makes it") from None
        stamp = (info.st_mtime_ns, info.st_size, info.st_ino)
        if stamp != self._stamp:
            self._keys = {key.id: key for key in read_keys(path).keys}
            self._stamp = stamp
