"""A timestamp: which release an alias points at, confirmed again every few days by a key of its own.

It is small and expires soon, so a device notices within days that it is kept from new releases. Its key signs nothing
else: whoever steals it cannot release anything. A root document without the role `timestamp` needs none. Source: TUF
1.0.33, timestamp role.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import Field

from tinymusician.artifacts.envelope import MAX_NUMBER, unseal
from tinymusician.artifacts.release import Word
from tinymusician.artifacts.trust import SPEC, Moment, SignedContent, Signers, validated
from tinymusician.errors import UntrustedError

KIND = "application/vnd.tinymusician.timestamp+json"
LONGEST_DAYS = 30
"""The longest time in days for which a timestamp may be valid."""


class Timestamp(SignedContent):
    """The signed content of a timestamp: the version of an alias's release, and the SHA-256 of its payload."""

    spec: int
    name: Word
    alias: Word
    version: int = Field(ge=1, le=MAX_NUMBER)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: Moment
    expires: Moment

    @property
    def reference(self) -> str:
        """NAME@ALIAS."""
        return f"{self.name}@{self.alias}"


def timestamp_key(name: str, alias: str) -> str:
    """The key of the timestamp of an alias in a store."""
    return f"releases/{name}/{alias}/timestamp.json"


def read_timestamp(data: bytes, reference: str, signers: Signers) -> Timestamp:
    """A timestamp of `reference` that the signers signed, whether or not it has expired.

    Raises:
        UntrustedError: it is not one.
    """
    title = f"timestamp of {reference}"
    timestamp = validated(Timestamp, unseal(data, KIND, signers.keys, title, signers.threshold), title)
    if timestamp.spec != SPEC:
        raise UntrustedError(f"{title}: its format is {timestamp.spec}, and this client reads {SPEC}; update the app")
    if timestamp.reference != reference:
        raise UntrustedError(f"{title}: the source has {timestamp.reference} in its place")
    if timestamp.expires - timestamp.created > timedelta(days=LONGEST_DAYS):
        raise UntrustedError(f"{title}: is valid for more than {LONGEST_DAYS} days")
    return timestamp


def check_timestamp_fresh(timestamp: Timestamp, now: datetime) -> None:
    """Check that a timestamp has not expired.

    Raises:
        UntrustedError: it has.
    """
    if timestamp.expires <= now:
        raise UntrustedError(
            f"timestamp of {timestamp.reference}: expired on {timestamp.expires:%Y-%m-%d}; its publisher must run "
            "`tmctl artifacts timestamp`, or somebody withholds newer ones"
        )


def check_is_confirmed(timestamp: Timestamp, version: int, sha256: str) -> None:
    """Check that a release is the one that a timestamp names.

    Raises:
        UntrustedError: it is another.
    """
    if (timestamp.version, timestamp.sha256) != (version, sha256):
        raise UntrustedError(
            f"release {timestamp.reference}: version {version} is not the one that its timestamp names, version "
            f"{timestamp.version}"
        )
