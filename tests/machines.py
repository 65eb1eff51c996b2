"""Machines on one: each with a network, processes, a host name, /tmp, shared memory and a home of its own.

They are Linux's namespaces, joined by a bridge at whose end this machine is. Only the root user can make them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = ("ip", "unshare", "nsenter")
# What a machine has for itself; the folders that all have lie where they lie here.
_BIRTH = """
set -e
hostname "$1"; shift
mount --make-rprivate /
mount --rbind / /mnt
mount -t tmpfs -o mode=1777 none /tmp
for kept in "$@"; do mkdir -p "$kept"; mount --rbind "/mnt$kept" "$kept"; done
umount -l /mnt
mount -t tmpfs -o mode=1777 none /dev/shm
mkdir /tmp/home
touch /tmp/home/born
exec sleep infinity
"""
_SERVICE = 'while :; do "$@"; sleep 1; done'


class NoMachines(Exception):
    """None can be made here; the message says why."""


class Machine:
    """One of the network's machines."""

    def __init__(self, network: Network, number: int, shared_paths: list[Path], environment: dict[str, str]) -> None:
        self.name, self.address = f"{network.name}n{number}", f"{network.prefix}.{number}"
        self.environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LANG": "C.UTF-8"}
        self.environment |= {"HOME": "/tmp/home", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", **environment}
        self._life: subprocess.Popen[bytes] | None = None
        network.machines.append(self)
        _ip(f"netns add {self.name}")
        _ip(f"link add {self.name} type veth peer name eth0 netns {self.name}")
        _ip(f"link set {self.name} master {network.name} up")
        for words in ("link set lo up", f"addr add {self.address}/24 dev eth0", "link set eth0 up"):
            _ip(f"-n {self.name} {words}")
        _ip(f"-n {self.name} route add default via {network.address}")
        namespaces = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        birth = ["sh", "-c", _BIRTH, "sh", self.name, *map(str, [ROOT, *shared_paths])]
        life = subprocess.Popen(["ip", "netns", "exec", self.name, *namespaces, *birth], start_new_session=True)
        self._life, children = life, Path(f"/proc/{life.pid}/task/{life.pid}/children")
        _wait(lambda: bool(children.read_text().split()))
        self._first = int(children.read_text().split()[0])
        _wait(lambda: Path(f"/proc/{self._first}/root/tmp/home/born").exists())

    def command(self, *words: str) -> list[str]:
        """What runs `words` on this machine."""
        inside = ["nsenter", f"--target={self._first}", "--mount", "--pid", "--uts", "--ipc", "--net", f"--wd={ROOT}"]
        return [*inside, "env", "-i", *(f"{name}={value}" for name, value in self.environment.items()), *words]

    def serve(self, *words: str) -> None:
        """Keep a command running, as a service manager does; it logs to /tmp/log."""
        command = self.command("sh", "-c", f"exec >> /tmp/log 2>&1; {_SERVICE}", "sh", *words)
        subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)

    def run(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=timeout, check=False)

    def cut(self) -> None:
        """Cut the machine off: no connection is closed, packets are lost."""
        _ip(f"link set {self.name} down")

    def mend(self) -> None:
        """Put it in again."""
        _ip(f"link set {self.name} up")

    def power_off(self) -> None:
        """Everything ends at once, without a last word to anybody."""
        self.cut()
        self._die()

    def _die(self) -> None:
        if self._life is not None:
            self._life.kill()  # and with it the namespace's first process, and with that all others
            self._life.wait(30)

    def remove(self) -> None:
        """Leave nothing of it."""
        self._die()
        _ip(f"netns del {self.name}")  # and with it both ends of its cable


class Network:
    """A bridge; `address` is this machine's on it."""

    def __init__(self) -> None:
        number = os.getpid() % 200 + 20
        self.name, self.prefix = f"tm{number}", f"10.213.{number}"
        self.address = f"{self.prefix}.254"
        self.machines: list[Machine] = []

    def machine(self, shared_paths: list[Path], environment: dict[str, str]) -> Machine:
        """One machine more, which has the checkout, the folders `kept` and nothing else of this machine's /tmp."""
        return Machine(self, len(self.machines) + 1, shared_paths, environment)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network without machines.

    Raises:
        NoMachines: none can be made here.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        raise NoMachines(f"machines of their own need root and {', '.join(missing or TOOLS)}")
    made = Network()
    try:
        _ip(f"netns add {made.name}")
        _ip(f"netns del {made.name}")
        _ip(f"link add {made.name} type bridge")
    except RuntimeError as error:
        raise NoMachines(str(error)) from error
    try:
        _ip(f"addr add {made.address}/24 dev {made.name}")
        _ip(f"link set {made.name} up")
        _between(made.name, "--insert")
        yield made
    finally:
        for machine in made.machines:
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                machine.remove()
        _between(made.name, "--delete")
        _ip(f"link del {made.name}")


def _between(bridge: str, what: str) -> None:
    """Let machines reach each other where a container engine has told the kernel to forward nothing but its own."""
    if shutil.which("iptables") is not None:
        words = ["iptables", what, "FORWARD", "-i", bridge, "-o", bridge, "-j", "ACCEPT"]
        subprocess.run(words, capture_output=True, check=False)


def _ip(words: str) -> None:
    ended = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError(f"ip {words}: {ended.stderr.strip()}")


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("the machine does not start")
        time.sleep(0.02)
