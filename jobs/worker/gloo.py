"""Through which network interface torch's gloo speaks: the one whose address Ray knows the machine by.

Left alone, gloo looks up the machine's own name, which on many machines leads to loopback or nowhere.
"""

from __future__ import annotations

import os
import socket

_VARIABLE = "GLOO_SOCKET_IFNAME"


def choose_interface() -> None:
    """Tell gloo, unless somebody has; Ray calls this in every worker process before its work."""
    import psutil
    import ray

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(place.family == socket.AF_INET and place.address == address for place in addresses):
            os.environ.setdefault(_VARIABLE, name)
