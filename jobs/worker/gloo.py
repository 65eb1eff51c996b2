"""Chooses the network interface of torch's gloo: the one with the address that Ray uses for this node.

By default gloo resolves the host's own name, which on many machines is loopback or unknown.
"""

from __future__ import annotations

import os
import socket

_VARIABLE = "GLOO_SOCKET_IFNAME"


def choose_interface() -> None:
    """Set GLOO_SOCKET_IFNAME unless it is set. Ray calls this at the start of every worker process."""
    import psutil
    import ray

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.family == socket.AF_INET and one.address == address for one in addresses):
            os.environ.setdefault(_VARIABLE, name)
