"""The root key and the newest root document that a publisher has seen, in a file beside the keys.

It lets the publisher detect root documents that an attacker has put into the store.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tinymusician.artifacts.atomic import atomic_write
from tinymusician.errors import KeyFileError

PIN = "pin.json"


class RootPin(BaseModel):
    """The first public root key, and the version of the newest root document and the SHA-256 of its payload."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str
    version: int
    sha256: str


def read_pin(folder: Path) -> RootPin | None:
    """The pin of a key folder, if there is one.

    Raises:
        KeyFileError: the pin is damaged.
    """
    try:
        return RootPin.model_validate_json((folder / PIN).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise KeyFileError(f"{folder / PIN}: cannot be read; copy it again from where the keys were created") from None


def write_pin(folder: Path, pin: RootPin) -> None:
    """Replace the pin atomically."""
    with atomic_write(folder / PIN, 0o600) as draft:
        draft.write_text(pin.model_dump_json() + "\n")
