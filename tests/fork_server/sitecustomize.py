"""Hands a Python command to the fork server, which has its libraries imported already, and stands in for it.

Python imports this file at its start where the folder is on PYTHONPATH. It does something only where FORK_SERVER names
the server's socket, and for COMMANDS only: everything else runs as ever. This process then waits for the forked one:
it passes signals on, and ends as the other ended. If it is killed itself, the server kills the other.
"""

from __future__ import annotations

import os
import sys

COMMANDS = {"setup_worker.py", "default_worker.py", "tmctl", "jobs.launch.supervisor"}
"""Ray's workers, the command line and the supervisor and driver of a job."""


def split(words: list[str]) -> tuple[list[str], str, list[str]]:
    """Python's own options, `-m` or the empty string, and the command with its arguments."""
    first = next((i for i, word in enumerate(words) if not word.startswith("-") or word == "-m"), len(words))
    if words[first : first + 1] == ["-m"]:
        return words[:first], "-m", words[first + 1 :]
    return words[:first], "", words[first:]


def without_setup(command: list[str]) -> list[str]:
    """Do what Ray's setup_worker.py does, which imports all of Ray for it: set variables, and go on as the worker.

    Where it would do more than that, it is left to do it.
    """
    if os.path.basename(command[0]) != "setup_worker.py" or os.path.basename(command[1]) != "default_worker.py":
        return command
    prefixes = ("--serialized-runtime-env-context=", "--language=")
    texts = [word.removeprefix(prefixes[0]) for word in command if word.startswith(prefixes[0])]
    context = json.loads(texts[0]) if texts and texts[0] else {}
    variables = context.get("env_vars", {})
    other = context.get("py_executable", sys.executable) != sys.executable or context.get("override_worker_entrypoint")
    if other or context.get("command_prefix") or any("$" in value for value in variables.values()):
        return command
    os.environ.update(variables)
    return [word for word in command[1:] if not word.startswith(prefixes)]


def connect(command: list[str]) -> socket.socket:
    """Reach the server for a command: for Ray's workers one that has Ray, and their variables of Ray."""
    address, worker = os.environ["FORK_SERVER"], os.path.basename(command[0]) == "default_worker.py"
    if worker:
        variables = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
        with_ray = f"{address}-{zlib.crc32(repr(sorted(variables.items())).encode()):08x}"
        for _ in range(2):
            with contextlib.suppress(OSError):
                return _connect(with_ray)
            with _connect(address) as server:
                send(server, {"serve": with_ray, "environment": variables})
                server.recv(1)
    return _connect(with_ray if worker else address)


def _connect(address: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    return server


def send(server: socket.socket, request: dict[str, object]) -> None:
    """Send a request, and this process' standard streams with it."""
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps(request).encode() + b"\n")


def delegate(options: list[str], module: str, command: list[str]) -> None:
    """Have the command run by a fork of a server, and end as it ends."""
    server = connect(command)
    request = {"options": options, "module": module, "command": command, "environment": dict(os.environ)}
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)  # Ray's own variables may name more than at the start
    path = [*(entry for entry in named if entry and entry not in sys.path), *sys.path]
    passed_on = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for number in passed_on:
        signal.signal(number, lambda got, _: server.sendall(b"%d " % got))
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)  # a signal comes after the request
    send(server, {**request, "folder": os.getcwd(), "path": path, "nice": os.nice(0)})
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
    answer = server.makefile("r").readline()
    if not answer:
        raise ConnectionError("the server has died")
    status = int(answer)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


_parts = split(sys.orig_argv[1:]) if "FORK_SERVER" in os.environ else ([], "", [])
if _parts[2] and os.path.basename(_parts[2][0]) in COMMANDS:
    import contextlib
    import json
    import signal
    import socket
    import zlib

    try:
        delegate(*_parts[:2], without_setup(_parts[2]))
    except BaseException as error:  # Python would continue silently, and tests would be slow for no visible reason
        print(f"fork server {os.environ['FORK_SERVER']}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
