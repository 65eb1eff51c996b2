"""The root document: which keys may sign what, how many of them must, and until when. Its own root keys sign it.

Versions are numbered without gaps. Each is signed by the threshold of root keys of the previous version and by that of
its own, so a device that trusts any version can verify the chain to the newest. Source: TUF 1.0.33, section 5.3 (update
root); the fields are TUF's, in one envelope (DSSE).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tinymusician.artifacts.envelope import parse_unverified, seal, unseal
from tinymusician.artifacts.keys import PrivateKey, key_id, public_hex, scheme_of
from tinymusician.errors import KeyFileError, UntrustedError

KIND = "application/vnd.tinymusician.root+json"
SPEC: Literal[2] = 2
"""The version of the documents' format. It increases only if a client of an earlier one could misread them."""
DAYS = 365
MAX_VERSIONS = 1000
"""The maximum number of versions that a device follows."""
MAX_SKIPPED = 32
"""The maximum number of versions that a device reads in search of the one that has its root key."""
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)")


def _is_written(value: object) -> object:
    """A date must be written out: a number would be read as seconds by some clients, and not by others."""
    if not isinstance(value, datetime) and not (isinstance(value, str) and _DATE.fullmatch(value)):
        raise ValueError("a date such as 2030-01-31T12:00:00Z is needed")
    return value


Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_is_written)]
KeyId = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RoleName = Literal["root", "release", "timestamp"]


class SignedContent(BaseModel):
    """The base of signed documents: fields of a later version of this format are allowed, and signed as well."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


Content = TypeVar("Content", bound=SignedContent)


class KeyEntry(SignedContent):
    """A public key in hexadecimal digits, and the scheme of its signatures. One of an unknown scheme signs nothing."""

    scheme: str = Field(max_length=64)
    public: str = Field(pattern=r"^([0-9a-f]{2}){1,4096}$")


class RoleKeys(SignedContent):
    """The keys of a role, and how many of them must sign."""

    keyids: tuple[KeyId, ...] = Field(min_length=1, max_length=8, strict=False)
    threshold: int = Field(ge=1, le=8)

    @model_validator(mode="after")
    def _can_be_reached(self) -> RoleKeys:
        if len(set(self.keyids)) < max(self.threshold, len(self.keyids)):
            raise ValueError(f"{len(set(self.keyids))} keys, of which {self.threshold} must sign")
        return self


class Signers(SignedContent):
    """The public keys (hexadecimal digits, by key id) that may sign a document, and how many of them must."""

    keys: dict[str, str]
    threshold: int = 1


class RootMetadata(SignedContent):
    """A root document. `roles` has `root`, `release` and perhaps `timestamp`; `revoked` are ids of release keys.

    What a revoked key signed does not count: not for publishers, and not on devices.
    """

    spec: int
    version: int = Field(ge=1, le=1_000_000)
    created: Moment
    expires: Moment
    keys: dict[str, KeyEntry] = Field(min_length=1, max_length=32)
    roles: dict[str, RoleKeys] = Field(max_length=8)
    revoked: tuple[KeyId, ...] = Field((), max_length=1000, strict=False)

    @model_validator(mode="after")
    def _is_consistent(self) -> RootMetadata:
        if self.spec != SPEC:
            raise ValueError(f"its format is {self.spec}, and this client reads {SPEC}; update the app")
        if any(name != key_id(entry.public) for name, entry in self.keys.items()):
            raise ValueError("a key has another id than its own")
        if not {"root", "release"} <= set(self.roles):
            raise ValueError("roles root and release are needed")
        named = [keyid for role in self.roles.values() for keyid in role.keyids]
        if len(set(named)) < len(named):
            raise ValueError("a key has two roles")
        if not set(named) <= set(self.keys):
            raise ValueError("a role names a key that is not among the keys")
        return self

    def signers(self, role: RoleName) -> Signers:
        """Who may sign for a role; nobody, if there is no such role. Keys of unknown schemes are left out."""
        if role not in self.roles:
            return Signers(keys={})
        entries = {keyid: self.keys[keyid] for keyid in self.roles[role].keyids}
        supported = {keyid: one.public for keyid, one in entries.items() if one.scheme == scheme_of(one.public)}
        return Signers(keys=supported, threshold=self.roles[role].threshold)

    def public_keys(self, role: RoleName) -> tuple[str, ...]:
        """The public keys of a role, in hexadecimal digits."""
        return tuple(self.signers(role).keys.values())

    @property
    def has_timestamp(self) -> bool:
        """Whether releases must be confirmed by a timestamp."""
        return "timestamp" in self.roles


def root_key(version: int) -> str:
    """The key of a version of the root document in a store."""
    return f"keys/root-{version:06}.json"


def sign_root(root: RootMetadata, keys: Collection[PrivateKey]) -> bytes:
    """The document, signed by its own root keys and by those of the previous version."""
    return seal(KIND, root.model_dump(mode="json"), list(keys))


class RoleMembers(SignedContent):
    """The public keys of a role in hexadecimal digits, and how many of them must sign."""

    publics: tuple[str, ...]
    threshold: int = 1


def next_root(
    before: RootMetadata | None,
    members: Mapping[RoleName, RoleMembers],
    now: datetime,
    revoked: Collection[str] = (),
) -> RootMetadata:
    """The version after `before` with the keys of these roles alone; `revoked` are key ids.

    Raises:
        KeyFileError: a key is there twice.
    """
    roles = {
        role: {"keyids": [key_id(one) for one in each.publics], "threshold": each.threshold}
        for role, each in members.items()
    }
    publics = [public for each in members.values() for public in each.publics]
    if twice := next((one for index, one in enumerate(publics) if one in publics[:index]), None):
        raise KeyFileError(f"key {key_id(twice)[:12]}: is named twice; each role needs keys of its own")
    return RootMetadata.model_validate(
        {
            "spec": SPEC,
            "version": before.version + 1 if before else 1,
            "created": now.replace(microsecond=0),
            "expires": (now + timedelta(days=DAYS)).replace(microsecond=0),
            "keys": {key_id(public): {"scheme": scheme_of(public), "public": public} for public in publics},
            "roles": roles,
            "revoked": sorted(revoked),
        }
    )


def members_of(root: RootMetadata) -> dict[RoleName, RoleMembers]:
    """The keys and thresholds of a root document's roles."""
    roles: tuple[RoleName, ...] = ("root", "release", "timestamp")
    return {
        role: RoleMembers(publics=root.public_keys(role), threshold=root.roles[role].threshold)
        for role in roles
        if role in root.roles
    }


def only(*keys: PrivateKey) -> RoleMembers:
    """A role of these keys, of which one must sign."""
    return RoleMembers(publics=tuple(public_hex(key) for key in keys))


def read_first(data: bytes, name: str = "root document 1") -> RootMetadata:
    """A document that is signed by its own keys. The caller must verify that they are trusted.

    Raises:
        UntrustedError: it is malformed, or not signed by its own keys.
    """
    root = validated(RootMetadata, parse_unverified(data, name), name)
    return read_root(data, root.version, root.signers("root"))


def read_root(data: bytes, version: int, signers: Signers) -> RootMetadata:
    """Version `version`, signed as `signers` demand (those of the version before) and as its own root role does.

    Raises:
        UntrustedError: it is not.
    """
    name = f"root document {version}"
    root = validated(RootMetadata, unseal(data, KIND, signers.keys, name, signers.threshold), name)
    if root.version != version:
        raise UntrustedError(f"{name}: contains version {root.version}")
    signers_of_itself = root.signers("root")
    unseal(data, KIND, signers_of_itself.keys, name, signers_of_itself.threshold)
    return root


def follow(pinned: str, trusted: RootMetadata | None, fetch: Callable[[int], bytes | None]) -> Iterator[RootMetadata]:
    """The root documents after the trusted one, in order; `fetch` returns a version's bytes, or None if it is missing.

    `pinned` is the public root key that came with the device. Without a trusted document, the chain begins at the first
    version that has this key in its root role and is signed by it; of the earlier versions, which belong to replaced
    keys, 32 at most are skipped.

    Raises:
        UntrustedError: the chain is broken.
    """
    current = trusted
    first = trusted.version + 1 if trusted else 1
    for version in range(first, MAX_VERSIONS + 1):
        if current is None and version > MAX_SKIPPED:
            raise UntrustedError(f"root documents: none of the first {MAX_SKIPPED} has the root key {pinned[:12]}…")
        data = fetch(version)
        if data is None:
            return
        if current is not None:
            current = read_root(data, version, current.signers("root"))
            yield current
        elif _names(data, version, pinned):
            current = read_root(data, version, Signers(keys={key_id(pinned): pinned}))
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


def validated(kind: type[Content], content: object, name: str) -> Content:
    """The content of a signed document, with its fields checked.

    Raises:
        UntrustedError: a field is missing or not allowed.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        said = problem["msg"].removeprefix("Value error, ")
        raise UntrustedError(f"{name}: {f'{where}: ' if where else ''}{said}") from None


def _names(data: bytes, version: int, public: str) -> bool:
    """Whether a document's root role has a public key, by what it says itself."""
    try:
        content = parse_unverified(data, f"root document {version}")
        return key_id(public) in content["roles"]["root"]["keyids"]
    except (UntrustedError, KeyError, TypeError):
        return False
