"""The clusters that Ray's token may be sent to: those that a user of this machine has named.

A run's record names a cluster, too, but it comes from the store, and whoever receives the token can run code on the
cluster. So the addresses of clusters that jobs were submitted to from this machine are remembered here.
"""

from __future__ import annotations

import contextlib

from jobs.launch import local_ray
from jobs.launch.ray_environment import configured_address
from tinymusician.artifacts.atomic import atomic_write, lock_file, open_lock
from tinymusician.errors import StoreError, UntrustedClusterError
from tinymusician.user_folders import user_folder

_FILE = "clusters.txt"


def remember_cluster(address: str) -> None:
    """Note that a job was submitted to the cluster at an address; without a folder that can be written, nothing is.

    A local Ray is not to be noted: after it has ended, another user's program may listen at its address.
    """
    with contextlib.suppress(OSError, StoreError):
        folder = user_folder("state")
        folder.mkdir(parents=True, exist_ok=True)
        with open_lock(folder / f".{_FILE}.lock") as lock:
            lock_file(lock)
            if address not in (addresses := _remembered()):
                with atomic_write(folder / _FILE, mode=0o600) as draft:
                    draft.write_text("".join(f"{one}\n" for one in sorted({*addresses, address})), "utf-8")


def check_trusted(address: str, named: str | None = None) -> None:
    """Check that a user of this machine has named the cluster: in the command (`named`), the environment, or before.

    Raises:
        UntrustedClusterError: only the store names it.
    """
    if address in (configured_address(named), configured_address(None), *_remembered()):
        return
    if address == local_ray.find():
        return
    raise UntrustedClusterError(
        f"cluster {address}: only the run's record in the store names it, and Ray's token is sent to no such address; "
        f"if it is yours, set TMCTL_CLUSTER={address}"
    )


def _remembered() -> set[str]:
    try:
        return set((user_folder("state") / _FILE).read_text("utf-8").split())
    except (OSError, StoreError, UnicodeDecodeError):
        return set()
