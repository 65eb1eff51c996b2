"""The clusters that Ray's token may be sent to: those that a user of this machine has named.

A run's record names a cluster, too, but it comes from the store, and whoever receives the token can run code on the
cluster. So the addresses that jobs were submitted to from this machine are remembered here.
"""

from __future__ import annotations

import contextlib

from jobs.launch import local_ray
from jobs.launch.ray_environment import configured_address
from tinymusician.artifacts.atomic import atomic_write
from tinymusician.errors import ClusterError, StoreError
from tinymusician.user_folders import user_folder

_FILE = "clusters.txt"


def remember_cluster(address: str) -> None:
    """Note that a job was submitted to the cluster at an address; without a folder that can be written, nothing is."""
    with contextlib.suppress(OSError, StoreError):
        if (addresses := _remembered()) | {address} != addresses:
            with atomic_write(user_folder("state") / _FILE, mode=0o600) as draft:
                draft.write_text("".join(f"{one}\n" for one in sorted({*addresses, address})), "utf-8")


def check_trusted(address: str) -> None:
    """Check that the user of this machine has named the cluster at an address: in the environment, or by submitting.

    Raises:
        ClusterError: only the store names it.
    """
    if address in (configured_address(None), *_remembered()) or address == local_ray.find():
        return
    raise ClusterError(
        f"cluster {address}: only the run's record in the store names it, and Ray's token is sent to no such address; "
        f"if it is yours, set TMCTL_CLUSTER={address}"
    )


def _remembered() -> set[str]:
    try:
        return set((user_folder("state") / _FILE).read_text("utf-8").split())
    except (OSError, StoreError, UnicodeDecodeError):
        return set()
