"""Errors of a worker's machine name it: a missing package, a full disk."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tinymusician.errors import ClusterError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def errors_name_the_node() -> Iterator[None]:
    """Add this machine's name to errors that come from it.

    Raises:
        ClusterError: a package is missing.
        OSError: a disk is full.
    """
    node = socket.gethostname()
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        message = f"node {node}: its Python has no {package}; install tinymusician with the same extras on every node"
        raise ClusterError(message) from None
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise OSError(error.errno, f"{error.strerror} on node {node}", error.filename) from error
