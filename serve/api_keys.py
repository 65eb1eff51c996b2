"""API keys: a file of their hashes, and who may ask how often.

A key is `tm_ID_SECRET` with 256 random bits, so that one round of SHA-256 hides it; the file never holds the secret.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from platformdirs import user_config_path
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from tinymusician.artifacts.atomic import atomic_write
from tinymusician.errors import KeyFileError

_FORM = re.compile(r"tm_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
FOREVER = 100 * 365


class ApiKey(BaseModel):
    """A key, as it is kept: `sha256` of its text, who it is for, and what it allows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: AwareDatetime
    expires: AwareDatetime
    per_minute: Annotated[int, Field(ge=1)]
    max_concurrency: Annotated[int, Field(ge=1)]


class KeyFile(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[ApiKey, ...] = ()


def default_file() -> Path:
    """Where `tmctl api-keys` keeps keys if it is told nothing else."""
    return user_config_path("tinymusician") / "api-keys.json"


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
    """Replace the file in one step; only its owner reads it."""
    with atomic_write(path, 0o600) as draft:
        draft.write_text(keys.model_dump_json(indent=2) + "\n")


@contextlib.contextmanager
def edited(path: Path, missing: bool = False) -> Iterator[list[ApiKey]]:
    """The keys of a file, to be changed in the block; kept when it ends without an error. Others wait their turn.

    Raises:
        KeyFileError: there is no file, unless it may be `missing`, or it holds something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = [] if missing and not path.exists() else list(read_keys(path).keys)
        yield keys
        write_keys(path, KeyFile(keys=tuple(keys)))


def new_key(name: str, per_minute: int, max_concurrency: int, days: int | None) -> tuple[str, ApiKey]:
    """A key's text, which is seen this once, and what is kept of it."""
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
    """No key, or none that counts; the message says why."""


class RateLimitError(Exception):
    """A key that asks too often; `wait` is how many seconds until it may again."""

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = wait


class ApiKeyAuthenticator:
    """Lets requests in by their keys. The file is read again when it changes, so a key can be revoked at any time."""

    def __init__(
        self,
        path: Path | None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Without a file everybody is let in.

        Raises:
            KeyFileError: the file is no file of keys.
        """
        self._path, self._clock, self._now = path, clock, now
        self._stamp: tuple[int, int, int] | None = None
        self._keys: dict[str, ApiKey] = {}
        self._budgets: dict[str, tuple[float, float]] = {}
        self._playing: dict[str, int] = {}
        if path is not None:
            self._load(path)

    @property
    def open(self) -> bool:
        """Whether no key is needed."""
        return self._path is None

    def authenticate(self, authorization: str | None) -> ApiKey | None:
        """The key of an `Authorization: Bearer KEY` header; None where none is needed.

        Raises:
            Unknown: there is none, or it does not count, or the file has gone.
        """
        if self._path is None:
            return None
        self._refresh(self._path)
        scheme, _, text = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise AuthenticationError("an API key is needed, in the header `Authorization: Bearer KEY`")
        form = _FORM.fullmatch(text.strip())
        key = self._keys.get(form[1]) if form else None
        digest = hashlib.sha256(text.strip().encode()).hexdigest()
        if key is None or not hmac.compare_digest(digest, key.sha256):
            raise AuthenticationError("this API key is not known here")
        if key.expires <= self._now():
            raise AuthenticationError(f"this API key expired on {key.expires:%Y-%m-%d}")
        return key

    @contextlib.contextmanager
    def entered(self, key: ApiKey | None) -> Iterator[None]:
        """Take one of a key's requests for as long as the block lasts.

        Raises:
            Often: it has none left now.
        """
        if key is None:
            yield
            return
        if self._playing.get(key.id, 0) >= key.max_concurrency:
            raise RateLimitError(f"this API key may have {key.max_concurrency} requests at once", 1.0)
        self._spend(key)
        self._playing[key.id] = self._playing.get(key.id, 0) + 1
        try:
            yield
        finally:
            self._playing[key.id] -= 1

    def _spend(self, key: ApiKey) -> None:
        """Take one of the key's tokens, of which `per_minute` come a minute and as many can be saved (token bucket)."""
        moment, rate = self._clock(), key.per_minute / 60
        saved, since = self._budgets.get(key.id, (float(key.per_minute), moment))
        left = min(float(key.per_minute), saved + (moment - since) * rate)
        if left < 1:
            self._budgets[key.id] = left, moment
            raise RateLimitError(f"this API key may ask {key.per_minute} times a minute", (1 - left) / rate)
        self._budgets[key.id] = left - 1, moment

    def _refresh(self, path: Path) -> None:
        try:
            self._load(path)
        except KeyFileError as error:
            self._keys, self._stamp = {}, None
            raise AuthenticationError("no API key counts: the endpoint's file of keys cannot be read") from error

    def _load(self, path: Path) -> None:
        try:
            info = path.stat()
        except OSError as error:
            raise KeyFileError(f"API keys {path}: {error.strerror}; `tmctl api-keys create NAME` makes it") from None
        stamp = (info.st_mtime_ns, info.st_size, info.st_ino)
        if stamp != self._stamp:
            self._keys = {key.id: key for key in read_keys(path).keys}
            self._stamp = stamp
