"""Imports what Ray's workers and jobs import, once, and forks for every command that is handed to it.

Without it each of a job's dozen processes spends seconds of a core on the same imports. Only other people's libraries
are imported here: every process imports the project's own code itself. sitecustomize.py beside this file hands
commands over.

Usage: python tests/fork_server/server.py SOCKET MODULE...
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

RAY_MODULES = ("ray.train.torch", "ray.train.v2.api.data_parallel_trainer", "ray.util.state")
"""What Ray's workers import of Ray. A server that has it serves those whose variables of Ray are the same: a job's."""
IDLE_SECONDS = 20.0
"""So long a server with Ray stays without forks."""
Request = dict[str, Any]


class Fork(NamedTuple):
    """A fork, and the connection of the process that stands in for it; a server with Ray has none."""

    pid: int
    connection: socket.socket | None


class Server:
    """Forks for each request on a socket, and answers it with the fork's wait status."""

    def __init__(self, listening: socket.socket, idle: float | None = None) -> None:
        """It ends after `idle` seconds without forks, and when the process that started it closes its input."""
        self._listening, self._idle = listening, idle
        self._forks: dict[int, Fork] = {}  # by pidfd
        self._selector = selectors.DefaultSelector()
        self._selector.register(listening, selectors.EVENT_READ)
        self._selector.register(0, selectors.EVENT_READ)

    def serve(self) -> Request:
        """Serve; returns in the forks only, with what they were asked."""
        while True:
            events = self._selector.select(self._idle)
            if not events and not self._forks:
                Path(self._listening.getsockname()).unlink(missing_ok=True)
                if not (events := self._selector.select(0)):  # no connection in the meantime
                    os._exit(0)
            for key, _ in events:
                if self._selector.get_map().get(key.fd) is not key:  # closed for another event of these
                    continue
                if key.fileobj is self._listening:
                    if (request := self._accept()) is not None:
                        return request
                elif key.fd == 0:
                    self._end()
                elif key.fd in self._forks:
                    self._ended(key.fd)
                else:
                    self._pass_on(key.fileobj, key.data)

    def _end(self) -> None:
        """End, with all forks; a server with Ray has the same input, and so ends at the same time."""
        for fork in self._forks.values():
            if fork.connection is not None:
                os.kill(fork.pid, signal.SIGKILL)
        os._exit(0)

    def _accept(self) -> Request | None:
        """Fork for a request; returns it in the fork."""
        connection, _ = self._listening.accept()
        request = receive(connection)
        if request is None:
            connection.close()
            return None
        if "serve" in request:
            return self._with_ray(request, connection)
        if self._fork(connection) == 0:
            return request
        for descriptor in request["descriptors"]:
            os.close(descriptor)
        return None

    def _with_ray(self, request: Request, connection: socket.socket) -> Request | None:
        """Have a server with Ray on the socket that is named, unless one answers there; returns in its forks only."""
        for descriptor in request["descriptors"]:
            os.close(descriptor)
        listening = None if answers(request["serve"]) else listen(request["serve"])
        connection.close()  # from now on it can be asked
        if listening is None:
            return None
        if self._fork(None) == 0:
            os.environ.update(request["environment"])
            import_ray()
            gc.freeze()
            return Server(listening, IDLE_SECONDS).serve()
        listening.close()
        return None

    def _fork(self, connection: socket.socket | None) -> int:
        """Fork, and look after the child; the child keeps nothing of the server."""
        if (pid := os.fork()) == 0:
            self._selector.close()
            for one in (self._listening, connection, *(fork.connection for fork in self._forks.values())):
                if one is not None:
                    one.close()
            for watch in self._forks:
                os.close(watch)
            return 0
        watch = os.pidfd_open(pid)
        self._forks[watch] = Fork(pid, connection)
        self._selector.register(watch, selectors.EVENT_READ)
        if connection is not None:
            self._selector.register(connection, selectors.EVENT_READ, pid)
        return pid

    def _ended(self, watch: int) -> None:
        """Tell the process that stands in for a fork how it ended, if that still lives."""
        pid, connection = self._forks.pop(watch)
        self._selector.unregister(watch)
        os.close(watch)
        _, status = os.waitpid(pid, 0)
        if connection is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(connection)
            with contextlib.suppress(OSError):
                connection.sendall(b"%d\n" % status)
            connection.close()

    def _pass_on(self, connection: socket.socket, pid: int) -> None:
        """Pass on the signals that came to the process that stands in for a fork, or its own end."""
        for word in connection.recv(64).split() or [signal.SIGKILL]:
            os.kill(pid, int(word))
            if int(word) == signal.SIGKILL:
                self._selector.unregister(connection)


def import_ray() -> None:
    """Import what workers need of Ray, and draw none of the random numbers that Ray's library makes ids of.

    Its generator takes its seed at the first draw: after one here, all forks would draw the same ids.
    """
    import ray.actor

    ids = ray.actor.ActorClassID
    ray.actor.ActorClassID = SimpleNamespace(from_random=lambda: ids(os.urandom(ids.size())))
    for name in RAY_MODULES:
        importlib.import_module(name)
    ray.actor.ActorClassID = ids


def listen(address: str) -> socket.socket:
    """A socket at an address, where there may be an old one."""
    Path(address).unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    return listening


def answers(address: str) -> bool:
    """Whether a server is there."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(address) == 0


def receive(connection: socket.socket) -> Request | None:
    """A request, the three standard streams that come with it, and the process that it comes from.

    Nothing, if that process has died before it had sent all of it.
    """
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    peer, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    with connection.makefile("rb") as lines:
        line = lines.readline()
    if not line.endswith(b"\n"):
        for descriptor in descriptors:
            os.close(descriptor)
        return None
    return {**json.loads(line), "descriptors": descriptors, "peer": peer}


NAMESPACES = {"mnt": 0x00020000, "uts": 0x04000000, "ipc": 0x08000000, "pid": 0x20000000, "net": 0x40000000}
"""Linux's namespaces, and their flags in setns(2)."""


def join_namespaces(peer: int) -> None:
    """Move to the machine of another process, where tests/machines.py has made one; returns in a process there."""
    if all(os.readlink(f"/proc/self/ns/{name}") == os.readlink(f"/proc/{peer}/ns/{name}") for name in NAMESPACES):
        return
    libc, kill_with_parent = ctypes.CDLL(None, use_errno=True), 1
    if libc.setns(os.pidfd_open(peer), sum(NAMESPACES.values())) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    if (pid := os.fork()) == 0:  # only children live in the other process namespace
        libc.prctl(kill_with_parent, signal.SIGKILL)
        return
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(os.waitstatus_to_exitcode(status))


def become(request: Request) -> None:
    """Take over what the other process has of the system: streams, folder, environment, path, niceness."""
    join_namespaces(request["peer"])
    os.setsid()
    for number, descriptor in enumerate(request["descriptors"]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.nice(request["nice"] - os.nice(0))
    os.environ.clear()
    os.environ.update(request["environment"])
    unbuffered = "-u" in request["options"] or bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.stdout.reconfigure(line_buffering=unbuffered, write_through=unbuffered)


def run(request: Request) -> None:
    """Run the command as Python's own start would have done."""
    command, safe = request["command"], "-P" in request["options"]
    sys.argv = list(command)
    sys.orig_argv = [sys.executable, *request["options"], *command]
    here = request["folder"] if request["module"] else str(Path(command[0]).resolve().parent)
    sys.path[:] = request["path"] if safe else [here, *request["path"]]
    if request["module"]:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(command[0], run_name="__main__")


def leave(work: Callable[[dict[str, Any]], None], request: Request) -> None:
    """Do the work, and end with its exit code without tearing down all modules, which would copy all their memory."""
    code: Any = 0
    try:
        work(request)
    except SystemExit as error:
        code = error.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # wait for threads as an interpreter does that ends
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    """Import, then serve; each fork runs its command here and ends with it."""
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.freeze()
    request = Server(listen(sys.argv[1])).serve()
    become(request)
    leave(run, request)


if __name__ == "__main__":
    main()
