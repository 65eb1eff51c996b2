"""Signing keys: Ed25519 key pairs in a folder that only their owner can read, never in a store.

The `root` key authorizes release keys and can be offline; the `release` key signs releases. A `job` key signs what jobs
made (`job_keys`).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tinymusician.artifacts.atomic import atomic_write
from tinymusician.errors import KeyFileError
from tinymusician.user_folders import user_folder

KEYS_VARIABLE = "TMCTL_KEYS"
Role = Literal["root", "release"]
KeyUse = Literal["root", "release", "job"]


def keys_folder() -> Path:
    """TMCTL_KEYS, or `keys` in the user's configuration folder."""
    override = os.environ.get(KEYS_VARIABLE)
    return Path(override).expanduser() if override else user_folder("config") / "keys"


def public_hex(key: Ed25519PrivateKey) -> str:
    """The public key, 64 hexadecimal digits."""
    return key.public_key().public_bytes_raw().hex()


def key_id(public: str) -> str:
    """The key id: the SHA-256 of the public key."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()


def new_key(role: KeyUse, folder: Path) -> Ed25519PrivateKey:
    """Create a key and write it to `ROLE-ID.pem` with mode 600."""
    key = Ed25519PrivateKey.generate()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_key(role, folder, key)
    return key


def write_key(role: KeyUse, folder: Path, key: Ed25519PrivateKey) -> None:
    """Write a private key to `ROLE-ID.pem` with mode 600, whole or not at all."""
    with atomic_write(_file(role, key_id(public_hex(key)), folder), 0o600) as draft:
        draft.write_bytes(_pem(key))


_FIRST = f"`tmctl signing-keys create` makes the first ones, {KEYS_VARIABLE} names another folder"
_ADVICE: Mapping[KeyUse, str] = {"root": _FIRST, "release": _FIRST, "job": "TMCTL_JOB_KEYS names another folder"}


def load_key(role: KeyUse, folder: Path, trusted: Collection[str]) -> Ed25519PrivateKey:
    """The private key of one of the `trusted` key ids, which come from the root document.

    Raises:
        KeyFileError: the folder has none of them, other users can read it, or it is not such a key.
    """
    for one in trusted:
        path = _file(role, one, folder)
        if path.exists():
            return _load(path, one)
    names = ", ".join(f"{role}-{one[:12]}.pem" for one in trusted)
    raise KeyFileError(f"{folder}: the {role} key is not here ({names}); {_ADVICE[role]}")


def _file(role: KeyUse, key_id: str, folder: Path) -> Path:
    return folder / f"{role}-{key_id[:12]}.pem"


def _load(path: Path, expected_id: str) -> Ed25519PrivateKey:
    try:
        info = path.stat()
        mode = stat.S_IMODE(info.st_mode)
        # A secret that Kubernetes mounts is owned by root and read through a group of its own.
        mounted = info.st_uid == 0 and os.geteuid() != 0
        if mode & (0o037 if mounted else 0o077):
            raise KeyFileError(f"{path}: others can read it (mode {mode:o}); `chmod 600 {path}`")
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise KeyFileError(f"{path}: cannot be read as a private key ({error})") from None
    if not isinstance(key, Ed25519PrivateKey) or key_id(public_hex(key)) != expected_id:
        raise KeyFileError(f"{path}: contains another key than its name says")
    return key


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
