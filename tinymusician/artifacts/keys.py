"""Signing keys: key pairs in a folder that only their owner can read, or in a token; never in a store.

A public key is written in hexadecimal digits: 64 for Ed25519 (RFC 8032), or 130 for an uncompressed point of ECDSA on
P-256 (FIPS 186-5; SEC 1, 2.3.3), which is what most hardware and cloud key stores have.

The `root` key authorizes release keys and can be offline; the `release` key signs releases. A `job` key signs what jobs
made (`job_keys`).

`ROLE-ID.pem` is a private key, which a passphrase may encrypt; `ROLE-ID.pkcs11` names one in a token (`token_keys`).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal, TypeGuard

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tinymusician.artifacts.atomic import atomic_write
from tinymusician.artifacts.secret_input import PASSPHRASE_VARIABLE, read_secret
from tinymusician.artifacts.token_keys import TokenAbsentError, TokenKey, open_token_key
from tinymusician.errors import KeyFileError
from tinymusician.user_folders import user_folder

KEYS_VARIABLE = "TMCTL_KEYS"
KeyUse = Literal["root", "release", "timestamp", "job"]
Scheme = Literal["ed25519", "ecdsa-p256-sha256"]
_SCHEMES: Mapping[int, Scheme] = {64: "ed25519", 130: "ecdsa-p256-sha256"}
FileKey = Ed25519PrivateKey | EllipticCurvePrivateKey
"""A private key of a known scheme; the elliptic curve is P-256."""
PrivateKey = FileKey | TokenKey
_ENCRYPTED = b"BEGIN ENCRYPTED PRIVATE KEY"


def keys_folder() -> Path:
    """TMCTL_KEYS, or `keys` in the user's configuration folder."""
    override = os.environ.get(KEYS_VARIABLE)
    return Path(override).expanduser() if override else user_folder("config") / "keys"


def public_hex(key: PrivateKey) -> str:
    """The public key in hexadecimal digits."""
    if isinstance(key, TokenKey):
        return key.public
    if isinstance(key, Ed25519PrivateKey):
        return key.public_key().public_bytes_raw().hex()
    form = (serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return key.public_key().public_bytes(*form).hex()


def scheme_of(public: str) -> Scheme | None:
    """The scheme of signatures of a public key, by its number of digits; None if it has no known one."""
    return _SCHEMES.get(len(public))


def sign(key: PrivateKey, message: bytes) -> bytes:
    """The signature of a message: 64 bytes of Ed25519, or DER of ECDSA over SHA-256."""
    if isinstance(key, Ed25519PrivateKey | TokenKey):
        return key.sign(message)
    return key.sign(message, ec.ECDSA(hashes.SHA256()))


def is_signature(public: str, signature: bytes, message: bytes) -> bool:
    """Whether a signature of a message is that of a public key."""
    try:
        data = bytes.fromhex(public)
        if scheme_of(public) == "ed25519":
            Ed25519PublicKey.from_public_bytes(data).verify(signature, message)
        elif scheme_of(public) == "ecdsa-p256-sha256":
            point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), data)
            point.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        else:
            return False
    except (InvalidSignature, ValueError):
        return False
    return True


def key_id(public: str) -> str:
    """The key id: the SHA-256 of the public key."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()


def new_key(role: KeyUse, folder: Path, scheme: Scheme = "ed25519", passphrase: bytes | None = None) -> FileKey:
    """Create a key and write it to `ROLE-ID.pem` with mode 600, encrypted if there is a passphrase."""
    key: FileKey = Ed25519PrivateKey.generate() if scheme == "ed25519" else ec.generate_private_key(ec.SECP256R1())
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_key(role, folder, key, passphrase)
    return key


def write_key(role: KeyUse, folder: Path, key: FileKey, passphrase: bytes | None = None) -> None:
    """Write a private key to `ROLE-ID.pem` with mode 600, whole or not at all."""
    with atomic_write(_file(role, key_id(public_hex(key)), folder), 0o600) as draft:
        draft.write_bytes(_pem(key, passphrase))


def add_token_key(role: KeyUse, folder: Path, uri: str) -> TokenKey:
    """Use a key of a token for a role: its URI is written to `ROLE-ID.pkcs11`.

    Raises:
        KeyFileError: there is no such key, or it is of another kind.
    """
    key = open_token_key(uri)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with atomic_write(_token_file(role, key_id(key.public), folder), 0o600) as draft:
        draft.write_text(uri + "\n", "utf-8")
    return key


def has_encrypted_keys(folder: Path) -> bool:
    """Whether a private key of the folder is encrypted: then new ones are, too."""
    return any(_ENCRYPTED in path.read_bytes() for path in folder.glob("*.pem"))


_FIRST = f"`tmctl signing-keys create` makes the first ones, {KEYS_VARIABLE} names another folder"
_ADVICE: Mapping[KeyUse, str] = {
    "root": _FIRST,
    "release": _FIRST,
    "timestamp": _FIRST,
    "job": "TMCTL_JOB_KEYS names another folder",
}


def load_key(role: KeyUse, folder: Path, trusted: Collection[str]) -> PrivateKey:
    """The private key of one of the `trusted` key ids, which come from the root document.

    Raises:
        KeyFileError: the folder has none of them, other users can read it, or it is not such a key.
    """
    if keys := _find_keys(role, folder, trusted, 1):
        return keys[0]
    names = ", ".join(f"{role}-{one[:12]}.pem" for one in trusted)
    raise KeyFileError(f"{folder}: the {role} key is not here ({names}); {_ADVICE[role]}")


def load_keys(role: KeyUse, folder: Path, trusted: Collection[str], count: int) -> list[PrivateKey]:
    """`count` private keys of the `trusted` key ids.

    Raises:
        KeyFileError: the folder has fewer of them, other users can read one, or it is not such a key.
    """
    keys = _find_keys(role, folder, trusted, count)
    if not keys:
        load_key(role, folder, trusted)  # says what is missing
    if len(keys) < count:
        raise KeyFileError(f"{folder}: {len(keys)} of the {role} keys are here, and {count} must sign")
    return keys


def _file(role: KeyUse, key_id: str, folder: Path) -> Path:
    return folder / f"{role}-{key_id[:12]}.pem"


def _token_file(role: KeyUse, key_id: str, folder: Path) -> Path:
    return _file(role, key_id, folder).with_suffix(".pkcs11")


def _find_keys(role: KeyUse, folder: Path, trusted: Collection[str], count: int) -> list[PrivateKey]:
    """The first `count` keys that are here, or fewer. A token that is elsewhere is passed over.

    Raises:
        KeyFileError: a key cannot be used; of absent tokens only if too few others are here.
    """
    keys, absent = list[PrivateKey](), list[TokenAbsentError]()
    for one in trusted:
        try:
            key = _find(role, one, folder) if len(keys) < count else None
        except TokenAbsentError as error:
            absent.append(error)
        else:
            keys += [key] if key is not None else []
    if absent and len(keys) < count:
        raise absent[0]
    return keys


def _find(role: KeyUse, expected_id: str, folder: Path) -> PrivateKey | None:
    path, token = _file(role, expected_id, folder), _token_file(role, expected_id, folder)
    if path.exists():
        return _load(path, expected_id)
    if not token.exists():
        return None
    key = open_token_key(token.read_text("utf-8").strip())
    if key_id(key.public) != expected_id:
        raise KeyFileError(f"{token}: the token has another key than the file's name says")
    return key


def _load(path: Path, expected_id: str) -> FileKey:
    try:
        content = read_private(path)
        passphrase = None
        if _ENCRYPTED in content:
            passphrase = read_secret("passphrase of the private keys", PASSPHRASE_VARIABLE)
        key = serialization.load_pem_private_key(content, passphrase)
    except (OSError, ValueError, TypeError) as error:
        raise KeyFileError(f"{path}: cannot be read as a private key ({error})") from None
    if not _is_supported(key) or key_id(public_hex(key)) != expected_id:
        raise KeyFileError(f"{path}: contains another key than its name says")
    return key


def read_private(path: Path) -> bytes:
    """The content of a file that others must not be able to read.

    Raises:
        KeyFileError: they are.
        OSError: it cannot be read.
    """
    info = path.stat()
    mode = stat.S_IMODE(info.st_mode)
    # A secret that Kubernetes mounts is owned by root and read through a group of its own.
    mounted = info.st_uid == 0 and os.geteuid() != 0
    if mode & (0o037 if mounted else 0o077):
        raise KeyFileError(f"{path}: others can read it (mode {mode:o}); `chmod 600 {path}`")
    return path.read_bytes()


def _is_supported(key: object) -> TypeGuard[FileKey]:
    is_p256 = isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)
    return is_p256 or isinstance(key, Ed25519PrivateKey)


def _pem(key: FileKey, passphrase: bytes | None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
