"""The highest version of every alias that this machine has released or confirmed, so that removed ones are noticed.

    FOLDER/NAME@ALIAS.json

Whoever can write to the store can remove releases, and put an older one in their place. A publisher that then signs
"the newest release" again would make devices go back to it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tinymusician.artifacts.atomic import atomic_write
from tinymusician.errors import KeyFileError, StoreError

RECORD_VARIABLE = "TMCTL_RELEASE_RECORD"


class RecordedRelease(BaseModel):
    """A version, and the ids of the keys that could sign it: if all of them are revoked, versions begin again at 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    keyids: tuple[str, ...]


class ReleaseRecord:
    """A folder of records: TMCTL_RELEASE_RECORD, or `released` beside the keys."""

    def __init__(self, keys: Path) -> None:
        override = os.environ.get(RECORD_VARIABLE)
        self.folder = Path(override).expanduser() if override else keys / "released"

    def path(self, reference: str) -> Path:
        """The file of a release NAME@ALIAS."""
        return self.folder / f"{reference}.json"

    def read(self, reference: str) -> RecordedRelease | None:
        """What is recorded of a release NAME@ALIAS, if anything is.

        Raises:
            KeyFileError: the file is damaged.
        """
        path = self.path(reference)
        try:
            return RecordedRelease.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            raise KeyFileError(f"{path}: cannot be read; delete it to trust the newest release in the store") from None

    def check_writable(self) -> None:
        """Check that records can be written, before anything is signed.

        Raises:
            StoreError: they cannot.
        """
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder.is_dir() and os.access(self.folder, os.W_OK)):
            raise StoreError(f"{self.folder}: cannot be written; {RECORD_VARIABLE} names a folder that lasts")

    def write(self, reference: str, release: RecordedRelease) -> None:
        """Record a release."""
        with atomic_write(self.path(reference), 0o600) as draft:
            draft.write_text(release.model_dump_json() + "\n")

    def references(self) -> list[str]:
        """All that is recorded, NAME@ALIAS."""
        return sorted(path.stem for path in self.folder.glob("*.json"))
