"""Signing keys: pairs of Ed25519 in a folder that only their owner can read, never in a store.

`root` says which keys may sign releases, and can be kept offline; `release` signs releases every day. Beside them lies
`pin.json`, which tells the publisher's own root documents from those that somebody put into the store instead.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from platformdirs import user_config_path
from pydantic import BaseModel, ConfigDict, ValidationError

from tinymusician.artifacts.atomic import atomic_write
from tinymusician.errors import KeyFileError

KEYS_VARIABLE = "TMCTL_KEYS"
Role = Literal["root", "release"]
PIN = "pin.json"


class RootPin(BaseModel):
    """What was made with these keys: the first public root key, and the newest root document's version and SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str
    version: int
    sha256: str


def read_pin(folder: Path) -> RootPin | None:
    """The pin beside the keys of a folder, if there is one.

    Raises:
        KeyFileError: it is damaged.
    """
    try:
        return RootPin.model_validate_json((folder / PIN).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise KeyFileError(f"{folder / PIN}: cannot be read; copy it again from where the keys were made") from None


def write_pin(folder: Path, pin: RootPin) -> None:
    """Replace the pin in one step."""
    with atomic_write(folder / PIN, 0o600) as draft:
        draft.write_text(pin.model_dump_json() + "\n")


def keys_folder() -> Path:
    """TMCTL_KEYS, or `keys` in the user's configuration folder."""
    override = os.environ.get(KEYS_VARIABLE)
    return Path(override).expanduser() if override else user_config_path("tinymusician") / "keys"


def public_hex(key: Ed25519PrivateKey) -> str:
    """A key's public half, 64 hexadecimal digits."""
    return key.public_key().public_bytes_raw().hex()


def key_id(public: str) -> str:
    """What a key is called: the SHA-256 of its public half."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()


def new_key(role: Role, folder: Path) -> Ed25519PrivateKey:
    """Make a key and write it to `ROLE-ID.pem`, readable by its owner alone."""
    key = Ed25519PrivateKey.generate()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(_file(role, key_id(public_hex(key)), folder), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(_pem(key))
        file.flush()
        os.fsync(file.fileno())
    return key


def load_key(role: Role, folder: Path, trusted: Collection[str]) -> Ed25519PrivateKey:
    """The private key of one of the `trusted` key ids. Which key is in use is said by the root document alone.

    Raises:
        KeyFileError: there is none here, others can read it, or it is no such key.
    """
    for one in trusted:
        path = _file(role, one, folder)
        if path.exists():
            return _loaded(path, one)
    names = ", ".join(f"{role}-{one[:12]}.pem" for one in trusted)
    raise KeyFileError(
        f"{folder}: the {role} key is not here ({names}); `tmctl signing-keys create` makes the first ones, "
        f"{KEYS_VARIABLE} names another folder"
    )


def _file(role: Role, key_id: str, folder: Path) -> Path:
    return folder / f"{role}-{key_id[:12]}.pem"


def _loaded(path: Path, expected_id: str) -> Ed25519PrivateKey:
    try:
        info = path.stat()
        mode = stat.S_IMODE(info.st_mode)
        # A secret that a cluster mounts is root's, and is read through a group that has nobody else in it.
        mounted = info.st_uid == 0 and os.geteuid() != 0
        if mode & (0o037 if mounted else 0o077):
            raise KeyFileError(f"{path}: others can read it (mode {mode:o}); `chmod 600 {path}`")
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise KeyFileError(f"{path}: cannot be read as a private key ({error})") from None
    if not isinstance(key, Ed25519PrivateKey) or key_id(public_hex(key)) != expected_id:
        raise KeyFileError(f"{path}: holds another key than its name says")
    return key


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
