"""The errors a user can meet. Each says the field or file, the value given, and what is allowed.

TinyMusicianError
├── RecipeError          a recipe's key, value or combination of values
├── ModelError           weights that are missing, damaged or of another shape than asked for
├── DataError            prompts, clips, tokens or shards that cannot be used
├── StoreError           the artifact store cannot be reached, read or written
│   ├── NotFound         nothing lies under this name
│   ├── Busy             it did not answer now, and may later
│   │   └── Denied       it does not say whether there is anything
│   ├── Corrupt          the bytes differ from their digest
│   └── Refused          a signed document or a download that is not to be trusted
├── KeyFileError         a signing key that is missing, unreadable or readable by others
├── Diverged             a loss that is no longer a finite number
├── RunError             a run that does not exist or is in no state for what was asked
├── ClusterError         the Ray cluster cannot be reached or refused the job
├── PlanError            a precision plan whose key or value is not allowed
├── ParityError          a bundle that does not play what its model plays
├── BundleError          a bundle that is damaged, incomplete or of another version
├── RequestError         a prompt, length or setting that cannot be played
└── EngineError          playing failed on this machine
"""

from __future__ import annotations


class TinyMusicianError(Exception):
    """Base of every error that is shown to a user as one line."""


class RecipeError(TinyMusicianError):
    """A recipe's key, value or combination of values is not allowed."""


class ModelError(TinyMusicianError):
    """Weights are missing, damaged or of another shape than asked for."""


class DataError(TinyMusicianError):
    """Prompts, clips, tokens or shards cannot be used."""


class StoreError(TinyMusicianError):
    """The artifact store cannot be reached, read or written."""


class NotFoundError(StoreError):
    """Nothing lies in the store under this name."""


class TransientStoreError(StoreError):
    """A store or a source that failed now and may answer later; `wait` is how many seconds it asked for."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class AccessDeniedError(TransientStoreError):
    """A store that refuses to answer (403): for a presigned address that is too old, or instead of a "not here"."""


class DigestMismatchError(StoreError):
    """Bytes in the store differ from their digest."""


class UntrustedError(StoreError):
    """A signed document or a download is not to be trusted: what is installed stays."""


class KeyFileError(TinyMusicianError):
    """A signing key is missing, cannot be read, or can be read by others."""


class NonFiniteLossError(TinyMusicianError):
    """The loss or its gradient is no longer a finite number, at the update that `step` counts from 0."""

    step: int = -1


class RunError(TinyMusicianError):
    """A run does not exist or is in no state for what was asked."""


class ClusterError(TinyMusicianError):
    """The Ray cluster cannot be reached, or refused the job."""


class BundleError(TinyMusicianError):
    """A bundle is damaged, incomplete or of another version."""


class RequestError(TinyMusicianError):
    """A prompt, a length or a setting cannot be played."""


class EngineError(TinyMusicianError):
    """Playing failed on this machine."""


class PlanError(TinyMusicianError):
    """A precision plan's key or value is not allowed."""


class ParityError(TinyMusicianError):
    """A bundle does not play what its model plays."""
