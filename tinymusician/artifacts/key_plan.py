"""Which keys a publisher starts with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from tinymusician.artifacts.keys import Scheme
from tinymusician.artifacts.trust import RoleName


class KeyPlan(NamedTuple):
    """The keys that `create` makes: how many of each role, how many of them must sign, and their scheme.

    Those of `tokens` (PKCS#11 URIs, by role) exist already, and count instead of new ones. With `is_encrypted`, a
    passphrase encrypts the new private keys.
    """

    root: int = 1
    root_threshold: int = 1
    release: int = 1
    release_threshold: int = 1
    has_timestamp: bool = False
    scheme: Scheme = "ed25519"
    is_encrypted: bool = False
    tokens: Mapping[RoleName, Sequence[str]] = MappingProxyType({})

    @property
    def counts(self) -> dict[RoleName, int]:
        """The number of keys by role."""
        counts: dict[RoleName, int] = {"root": self.root, "release": self.release}
        return {**counts, "timestamp": 1} if self.has_timestamp else counts

    @property
    def thresholds(self) -> dict[RoleName, int]:
        """How many keys must sign, by role."""
        return {"root": self.root_threshold, "release": self.release_threshold, "timestamp": 1}
