"""Job keys: with them drivers sign what their jobs made, so that nobody who signs releases must trust the store.

The folder has `job-ID.pem`, the private key of the drivers that can read it, and `job-ID.pub`, the public key of every
driver that is trusted here. Workers, which run users' code, need neither; they have a key that is derived from it.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tinymusician.artifacts.atomic import atomic_write, lock_file, open_lock
from tinymusician.artifacts.keys import PrivateKey, key_id, load_key, public_hex, write_key
from tinymusician.errors import KeyFileError
from tinymusician.user_folders import user_folder

JOB_KEYS_VARIABLE = "TMCTL_JOB_KEYS"
_PUBLIC_DIGITS = 64
_WORKING_FILES = b"tinymusician working files"


def job_keys_folder() -> Path:
    """TMCTL_JOB_KEYS, or `job-keys` in the user's configuration folder."""
    override = os.environ.get(JOB_KEYS_VARIABLE)
    return Path(override).expanduser() if override else user_folder("config") / "job-keys"


def local_job_key() -> PrivateKey:
    """The private key of this machine's drivers, which is created when it is first needed.

    Raises:
        KeyFileError: it cannot be read or created.
    """
    folder = job_keys_folder()
    try:
        if not any(folder.glob("job-*.pem")):
            _create(folder)
    except OSError as error:
        advice = f"{JOB_KEYS_VARIABLE} names a folder that holds one or can be written"
        raise KeyFileError(f"{folder}: a job key cannot be created ({error.strerror}); {advice}") from None
    return load_key("job", folder, trusted_job_keys())


def derived_working_key() -> bytes:
    """The key of this machine's drivers and their workers for working files, by HKDF-SHA256 (RFC 5869) of the job key.

    Workers have it, and learn nothing about the job key from it.

    Raises:
        KeyFileError: there is no job key in a file, and none can be created.
    """
    key = local_job_key()
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{job_keys_folder()}: a job key is an Ed25519 key in a file")
    return HKDF(hashes.SHA256(), 32, salt=None, info=_WORKING_FILES).derive(key.private_bytes_raw())


def trusted_job_keys() -> dict[str, str]:
    """The public keys of trusted drivers in hexadecimal digits, by key id.

    Raises:
        KeyFileError: a file is damaged.
    """
    return dict(_read(path) for path in sorted(job_keys_folder().glob("job-*.pub")))


def trust_job_key(public: str) -> Path:
    """Trust the drivers with this public key; returns its file.

    Raises:
        KeyFileError: it is no public key, or the folder cannot be written.
    """
    if len(public) != _PUBLIC_DIGITS or not set(public) <= set("0123456789abcdef"):
        raise KeyFileError(f"job key {public!r}: {_PUBLIC_DIGITS} hexadecimal digits are needed (lower case)")
    folder = job_keys_folder()
    path = folder / f"job-{key_id(public)[:12]}.pub"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with atomic_write(path, 0o644) as draft:
            draft.write_text(f"{public}\n", "ascii")
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def _create(folder: Path) -> None:
    """Create a key, unless another process does; its public half is written first."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open_lock(folder / ".job-keys.lock") as lock:
        lock_file(lock)
        if any(folder.glob("job-*.pem")):
            return
        key = Ed25519PrivateKey.generate()
        trust_job_key(public_hex(key))
        write_key("job", folder, key)


def _read(path: Path) -> tuple[str, str]:
    try:
        public = path.read_text("ascii").strip()
        identity = key_id(public)
    except (OSError, ValueError) as error:
        raise KeyFileError(f"{path}: cannot be read as a public key ({error})") from None
    if path.name != f"job-{identity[:12]}.pub":
        raise KeyFileError(f"{path}: contains another key than its name says")
    return identity, public
