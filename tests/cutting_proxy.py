"""A TCP proxy that closes its connections after a given number of bytes from the server."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

_BLOCK = 1 << 14


class Line:
    """Connections to a server; `cuts` are used up one a connection, in bytes of what the server says."""

    def __init__(self, port: int) -> None:
        self._server = ("127.0.0.1", port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.cuts: list[int] = []
        self.carried = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self) -> None:
        """Take connections until the line is closed."""
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _connect(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._server) as server:
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            left: int | None = None
            while block := server.recv(_BLOCK):
                with self._lock:
                    if left is None and self.cuts and len(block) == _BLOCK:  # only long answers are cut
                        left = self.cuts.pop(0)
                    self.carried += len(block)
                if left is not None:
                    left -= len(block)
                    if left <= 0:
                        break
                client.sendall(block)
            for end in (client, server):
                end.shutdown(socket.SHUT_RDWR)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := client.recv(_BLOCK):
                server.sendall(block)


@contextlib.contextmanager
def line(port: int) -> Iterator[Line]:
    """A line to a port of this machine."""
    result = Line(port)
    threading.Thread(target=result.serve, daemon=True).start()
    try:
        yield result
    finally:
        result.close()
