"""The environment variables of Ray: authentication, addresses, proxies, and what Ray's processes inherit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

from tinymusician.errors import ClusterError

AUTHENTICATION = ("RAY_AUTH_MODE", "token")
"""Ray's authentication: some of its ports listen on every interface, even of a head on loopback, so all need a token.
"""
QUIET_ENVIRONMENT = {"REPORTER_UPDATE_INTERVAL_MS": "30000"}
"""Ray's dashboard scans every process of the machine; every 5 s takes 8 % of a laptop's core."""
CLUSTER_VARIABLE = "TMCTL_CLUSTER"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray's clients prefer these to the address that they are called with."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def token_file() -> Path:
    """The file in which Ray stores its token.

    Raises:
        RuntimeError: this user has no home folder.
    """
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def read_token() -> str | None:
    """The token that Ray's clients send: from RAY_AUTH_TOKEN or the token file."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    try:
        return token_file().read_text().strip()
    except (OSError, RuntimeError):
        return None


def use_token() -> None:
    """Make Ray's client send its token if there is one; a cluster without authentication ignores it."""
    if read_token() is not None:
        os.environ.setdefault(*AUTHENTICATION)


def configured_address(address: str | None) -> str | None:
    """The address of the cluster that a command or the environment names; None without one.

    Raises:
        ClusterError: it is not the address of a dashboard.
    """
    target = address or os.environ.get(CLUSTER_VARIABLE)
    if target and urlparse(target).scheme not in {"http", "https"}:
        raise ClusterError(f"cluster {target!r}: the address of Ray's dashboard is needed, such as http://HEAD:8265")
    from_ray = next((os.environ[name] for name in ADDRESS_VARIABLES if name in os.environ), "")
    return target or (from_ray if urlparse(from_ray).scheme in {"http", "https"} else None)


@contextmanager
def explicit_address() -> Iterator[None]:
    """Make Ray's clients that are created inside use the address that they are given."""
    hidden = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def bypass_proxies() -> None:
    """Exclude this machine from the proxies in the environment, for this process and those that it starts."""
    names = ("no_proxy", "NO_PROXY")
    hosts = [host.strip() for name in names for host in os.environ.get(name, "").split(",") if host.strip()]
    everything = "*" in hosts  # which is a wildcard only by itself
    for name in names:  # programs differ in which of the two they prefer
        os.environ[name] = "*" if everything else ",".join(dict.fromkeys([*hosts, *_LOOPBACK]))


def worker_environment() -> dict[str, str]:
    """The environment of Ray's processes: Ray Train's second version, no warning about its metrics port.

    Without the rest, Ray Train would print everything twice, and lines would be coloured and merged.
    """
    return {
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_COLOR_PREFIX": "0",
        "RAY_DEDUP_LOGS": "0",
    }
