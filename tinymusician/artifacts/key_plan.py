"""Which keys a publisher starts with."""

from __future__ import annotations

from typing import NamedTuple

from tinymusician.artifacts.keys import Scheme
from tinymusician.artifacts.trust import RoleName


class KeyPlan(NamedTuple):
    """The keys that `create` makes: how many of each role, how many of them must sign, and their scheme."""

    root: int = 1
    root_threshold: int = 1
    release: int = 1
    release_threshold: int = 1
    has_timestamp: bool = False
    scheme: Scheme = "ed25519"

    @property
    def counts(self) -> dict[RoleName, int]:
        """The number of keys by role."""
        counts: dict[RoleName, int] = {"root": self.root, "release": self.release}
        return {**counts, "timestamp": 1} if self.has_timestamp else counts

    @property
    def thresholds(self) -> dict[RoleName, int]:
        """How many keys must sign, by role."""
        return {"root": self.root_threshold, "release": self.release_threshold, "timestamp": 1}
