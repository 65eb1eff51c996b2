"""The root document: the keys that may sign releases, and its expiry date. The root key, which devices have, signs it.

Versions are numbered without gaps. Each is signed by a root key of the previous version and by one of its own, so a
device that trusts any version can verify the chain to the newest. Source: TUF 1.0.33, section 5.3 (update root).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from datetime import datetime, timedelta
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tinymusician.artifacts.envelope import parse_unverified, seal, unseal
from tinymusician.artifacts.keys import key_id, public_hex
from tinymusician.errors import UntrustedError

KIND = "application/vnd.tinymusician.root.v1+json"
DAYS = 365
MAX_VERSIONS = 1000
"""The maximum number of versions that a device follows."""
Public = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RootMetadata(BaseModel):
    """`root` and `release` hold public keys in hex, `revoked` release keys whose signatures no longer count."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: int = Field(ge=1, le=1_000_000)
    created: AwareDatetime = Field(strict=False)
    expires: AwareDatetime = Field(strict=False)
    root: tuple[Public, ...] = Field(min_length=1, max_length=8, strict=False)
    release: tuple[Public, ...] = Field(min_length=1, max_length=8, strict=False)
    revoked: tuple[Public, ...] = Field((), max_length=1000, strict=False)

    @model_validator(mode="after")
    def _apart(self) -> RootMetadata:
        if set(self.root) & set(self.release):
            raise ValueError("a key is both root and release key")
        return self

    @property
    def release_keys(self) -> dict[str, str]:
        """Public release keys by key id."""
        return by_id(self.release)


def by_id(publics: Collection[str]) -> dict[str, str]:
    """Public keys by key id."""
    return {key_id(public): public for public in publics}


def root_key(version: int) -> str:
    """The key of a version of the root document in a store."""
    return f"keys/root-{version:06}.json"


def sign_root(root: RootMetadata, keys: Collection[Ed25519PrivateKey]) -> bytes:
    """The document, signed by its own root keys and by those of the previous version."""
    return seal(KIND, root.model_dump(mode="json"), list(keys))


def next_root(
    before: RootMetadata | None,
    root: Ed25519PrivateKey,
    release: Ed25519PrivateKey,
    now: datetime,
    revoked: Collection[str] = (),
) -> RootMetadata:
    """The version after `before` with these keys alone."""
    return RootMetadata(
        version=before.version + 1 if before else 1,
        created=now.replace(microsecond=0),
        expires=(now + timedelta(days=DAYS)).replace(microsecond=0),
        root=(public_hex(root),),
        release=(public_hex(release),),
        revoked=tuple(revoked),
    )


def read_first(data: bytes) -> RootMetadata:
    """Version 1, signed by its own key. The caller must verify that this key is trusted.

    Raises:
        UntrustedError: it is malformed, or not signed by its own key.
    """
    name = "root document 1"
    try:
        root = RootMetadata.model_validate(parse_unverified(data, name)).root
    except ValidationError as error:
        raise UntrustedError(f"{name}: {error.errors()[0]['msg']}") from None
    return read_root(data, 1, root)


def read_root(data: bytes, version: int, signers: Collection[str]) -> RootMetadata:
    """Version `version`, signed by one of `signers` (public keys in hex) and by one of its own root keys.

    Raises:
        UntrustedError: it is not.
    """
    name = f"root document {version}"
    content = unseal(data, KIND, by_id(signers), name)
    try:
        root = RootMetadata.model_validate(content)
    except ValidationError as error:
        raise UntrustedError(f"{name}: {error.errors()[0]['msg']}") from None
    if root.version != version:
        raise UntrustedError(f"{name}: contains version {root.version}")
    unseal(data, KIND, by_id(root.root), name)
    return root


def follow(pinned: str, trusted: RootMetadata | None, fetch: Callable[[int], bytes | None]) -> Iterator[RootMetadata]:
    """The root documents after the trusted one, in order; `fetch` returns a version's bytes, or None if it is missing.

    `pinned` is the public root key that came with the device. Without a trusted document, the chain begins at the first
    version that contains this key; earlier versions belong to replaced keys and are skipped.

    Raises:
        UntrustedError: the chain is broken.
    """
    current = trusted
    for version in range(trusted.version + 1 if trusted else 1, MAX_VERSIONS + 1):
        data = fetch(version)
        if data is None:
            return
        if current is not None or _names(data, version, pinned):
            current = read_root(data, version, current.root if current else (pinned,))
            yield current


def check_current(root: RootMetadata, now: datetime) -> None:
    """Check that a root document has not expired.

    Raises:
        UntrustedError: it has.
    """
    if root.expires <= now:
        raise UntrustedError(
            f"root document {root.version}: expired on {root.expires:%Y-%m-%d}; its owner must run "
            "`tmctl signing-keys renew`"
        )


def _names(data: bytes, version: int, public: str) -> bool:
    try:
        content = parse_unverified(data, f"root document {version}")
    except UntrustedError:
        return False
    keys = content.get("root") if isinstance(content, dict) else None
    return isinstance(keys, list) and public in keys
