"""A release: the signed manifest that devices request as NAME@ALIAS.

It lists every file with size and digest, and has a version that only grows, and an expiry date. It contains its name
and alias, so that no other release can take its place.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

from pydantic import Field, model_validator

from tinymusician.artifacts.envelope import MAX_NUMBER, unseal
from tinymusician.artifacts.file_names import is_portable
from tinymusician.artifacts.trust import SPEC, Moment, SignedContent, Signers, validated
from tinymusician.errors import UntrustedError
from tinymusician.json_types import JsonObject

KIND = "application/vnd.tinymusician.release+json"
MAX_FILE_BYTES, MAX_FILES = 1 << 40, 4096
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
Word = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]


class ReleasedFile(SignedContent):
    """One file. Its path has plain names: letters, digits, `.`, `_`, `-`, no dot at either end, no device."""

    path: str = Field(max_length=256)
    size: int = Field(ge=0, le=MAX_FILE_BYTES)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _stays_inside(self) -> ReleasedFile:
        parts = self.path.split("/")
        if not all(_PART.fullmatch(part) and is_portable(part) for part in parts) or len(parts) > 8:
            raise ValueError(f"path {self.path!r}: plain relative names are needed, which Windows accepts too")
        return self


class Release(SignedContent):
    """The signed content of a release. No device decides anything by `about`."""

    spec: int = SPEC
    name: Word
    alias: Word
    version: int = Field(ge=1, le=MAX_NUMBER)
    created: Moment
    expires: Moment
    artifact: str = Field(max_length=256)
    kind: str = Field(max_length=64)
    licence: str = Field(max_length=1024)
    files: tuple[ReleasedFile, ...] = Field(min_length=1, max_length=MAX_FILES, strict=False)
    about: JsonObject = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_of_this_format(self) -> Release:
        if self.spec != SPEC:
            raise ValueError(f"its format is {self.spec}, and this client reads {SPEC}; update the app")
        return self

    @model_validator(mode="after")
    def _no_two_alike(self) -> Release:
        """On a case-insensitive device, two files must not have the same path, nor that of a folder."""
        paths = [file.path.lower() for file in self.files]
        folders = {path.rsplit("/", depth)[0] for path in paths for depth in range(1, path.count("/") + 1)}
        if len(set(paths)) < len(paths) or folders & set(paths):
            raise ValueError("files: two of them have the same path")
        sizes: dict[str, int] = {}
        if any(sizes.setdefault(file.sha256, file.size) != file.size for file in self.files):
            raise ValueError("files: one digest has two sizes")
        return self

    @property
    def reference(self) -> str:
        """NAME@ALIAS."""
        return f"{self.name}@{self.alias}"

    @property
    def size(self) -> int:
        """The total size of all files in bytes."""
        return sum(file.size for file in self.files)


def latest_key(name: str, alias: str) -> str:
    """The key of the newest release of an alias, for clients that cannot list."""
    return f"releases/{name}/{alias}/latest.json"


def release_key(name: str, alias: str, version: int, sha256: str) -> str:
    """The key of a version of an alias, which never changes; `sha256` is that of its payload."""
    return f"releases/{name}/{alias}/v{version:08}-{sha256[:12]}.json"


def read_release(data: bytes, reference: str, signers: Signers) -> Release:
    """A release of `reference` that the signers signed, whether or not it has expired.

    Raises:
        UntrustedError: it is not one.
    """
    title = f"release {reference}"
    content = unseal(data, KIND, signers.keys, title, signers.threshold)
    if "spec" not in content:
        raise UntrustedError(f"{title}: spec: is missing")
    release = validated(Release, content, title)
    if release.reference != reference:
        raise UntrustedError(f"{title}: the source has {release.reference} in its place")
    return release


def check_fresh(release: Release, now: datetime) -> None:
    """Check that a release has not expired.

    Raises:
        UntrustedError: it has.
    """
    if release.expires <= now:
        raise UntrustedError(
            f"release {release.reference}, version {release.version}: expired on {release.expires:%Y-%m-%d}; its "
            f"publisher must promote it again"
        )
