"""The errors of the library. Each names the field or file, the value given, and what is allowed.

TinyMusicianError
├── RecipeError                a recipe's key, value or combination of values
├── ModelError                 weights that are missing, damaged or of another shape
├── DataError                  prompts, clips, tokens or shards that cannot be used
├── StoreError                 the artifact store cannot be reached, read or written
│   ├── NotFoundError          there is nothing under this name
│   ├── TransientStoreError    no response now; a later request may succeed
│   │   └── AccessDeniedError  the store does not say whether there is anything
│   ├── DigestMismatchError    the bytes differ from their digest
│   └── UntrustedError         a signed document or a download that is not trusted
├── KeyFileError               a file of keys that is missing, unreadable or readable by others
├── NonFiniteLossError         a loss that is not finite
├── RunError                   a run that does not exist, or has the wrong state
├── ClusterError               the Ray cluster cannot be reached, or refused the job
│   └── UntrustedClusterError  only the store names the cluster
├── PlanError                  a precision plan whose key or value is not allowed
├── ParityError                a bundle that differs too much from its model
├── BundleError                a bundle that is damaged, incomplete or of another version
├── RequestError               a prompt, length or setting that is not allowed
└── EngineError                generation failed on this machine
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class TinyMusicianError(Exception):
    """The base of every error that users see as one line."""


class RecipeError(TinyMusicianError):
    """A recipe's key, value or combination of values is not allowed."""


class ModelError(TinyMusicianError):
    """Weights are missing, damaged or of another shape."""


class DataError(TinyMusicianError):
    """Prompts, clips, tokens or shards cannot be used."""


class StoreError(TinyMusicianError):
    """The artifact store cannot be reached, read or written."""


class NotFoundError(StoreError):
    """The store has nothing under this name."""


class TransientStoreError(StoreError):
    """A store or source that failed now and may respond later; it requested a pause of `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AccessDeniedError(TransientStoreError):
    """A store denied access (403): for a presigned URL that has expired, or instead of "not found"."""


class DigestMismatchError(StoreError):
    """Bytes in the store differ from their digest."""


class UntrustedError(StoreError):
    """A signed document or a download is not trusted; the installed version stays."""


class KeyFileError(TinyMusicianError):
    """A file of signing or API keys is missing, cannot be read, or can be read by others."""


class NonFiniteLossError(TinyMusicianError):
    """The loss or its gradient is not finite, at the update `step`, counted from 0."""

    step: int = -1


class RunError(TinyMusicianError):
    """A run does not exist, or has the wrong state."""


class ClusterError(TinyMusicianError):
    """The Ray cluster cannot be reached, or refused the job."""


class UntrustedClusterError(ClusterError):
    """Only the store names the cluster, so Ray's token is not sent there."""


class BundleError(TinyMusicianError):
    """A bundle is damaged, incomplete or of another version."""


class RequestError(TinyMusicianError):
    """A prompt, a length or a setting is not allowed; `field` names it if it is a field of a request."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class EngineError(TinyMusicianError):
    """Generation failed on this machine."""


class PlanError(TinyMusicianError):
    """A precision plan's key or value is not allowed."""


class ParityError(TinyMusicianError):
    """A bundle differs too much from its model."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened; its type if it has none."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def contain_panics() -> Iterator[None]:
    """Raise a panic of a library's Rust code as a RuntimeError: pyo3's PanicException is no `Exception`.

    The tokenizers library panics for some damaged files, and for some texts.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"a library panicked: {first_line(error)}") from error
