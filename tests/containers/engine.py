"""A container engine for tests: the one that runs, or one of our own for as long as the tests last.

Where no image can be pulled, the base image is made by debootstrap and set up to install packages as this machine does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BASE = "python:3.11-slim-bookworm"
PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class NoEngine(Exception):
    """No engine runs here and none can be started; the message says why."""


class Engine:
    """Docker, and docker-compose, with the environment that speaks to it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = {**os.environ, **environment, "DOCKER_BUILDKIT": "0"}

    def docker(self, *words: str, check: bool = True, timeout: float = 1800) -> str:
        return self._run([_docker(), *words], check, timeout)

    def compose(self, *words: str, check: bool = True, timeout: float = 900, folder: Path | None = None) -> str:
        whole = subprocess.run([_docker(), "compose", "version"], capture_output=True, check=False).returncode == 0
        return self._run(
            [_docker(), "compose", *words] if whole else ["docker-compose", *words], check, timeout, folder
        )

    def _run(self, command: list[str], check: bool, timeout: float, folder: Path | None = None) -> str:
        ended = subprocess.run(
            command, env=self.environment, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and ended.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {ended.stdout[-3000:]}\n{ended.stderr[-3000:]}")
        return ended.stdout

    def make_base(self) -> None:
        """See to it that the images' base is here."""
        if self.docker("images", "-q", BASE).strip():
            return
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            self.docker("pull", BASE, timeout=120)
            return
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "root"
            command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root), *_mirror()]
            self._run(command, True, 900)
            _finish(root)
            packed = f"tar -C {root} -c . | {_docker()} import --change 'ENV PATH={PATH}' - {BASE}"
            self._run(["sh", "-c", packed], True, 900)


def _docker() -> str:
    """Debian's client: another one may have been put before it that knows no old engine."""
    return "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"


def _mirror() -> list[str]:
    """Where this machine gets Debian's packages from, if it says so."""
    for path in (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")):
        for line in path.read_text().splitlines() if path.is_file() else ():
            words = line.split()
            if words[:1] in (["URIs:"], ["deb"]):
                return [next(word for word in words if "://" in word)]
    return []


def _finish(root: Path) -> None:
    """Python under the name that its official image gives it; certificates and pip's settings of this machine."""
    for name, target in (("python", "/usr/bin/python3"), ("pip", "/usr/bin/pip3")):
        (root / "usr/local/bin" / name).symlink_to(target)
    for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()
    shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
    listed = subprocess.run(["pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    named = [line.split("=", 1) for line in reversed(listed.splitlines()) if "=" in line]  # the environment wins
    settings = {name.rpartition(".")[2]: value.strip("'") for name, value in named}
    for path in (path for name in ("find-links", "constraint") for path in _paths(settings.get(name, ""))):
        target = root / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)
    there = {name: value for name, value in settings.items() if _is_in(root, value)}
    lines = [f"{name} = {value}" for name, value in sorted(there.items())]
    (root / "etc/pip.conf").write_text("\n".join(["[global]", *lines]) + "\n")


def _is_in(root: Path, value: str) -> bool:
    """Whether each of this machine's files that a setting names is in the image too."""
    return all((root / path.relative_to("/")).exists() for path in _paths(value))


def _paths(value: str) -> list[Path]:
    """The paths among the words of a setting of pip."""
    words = [word.removeprefix("file://") for word in value.split()]
    return [Path(word) for word in words if word.startswith("/")]


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """An engine.

    Raises:
        NoEngine: there is none, and none can be started here.
    """
    if shutil.which(_docker()) is None:
        raise NoEngine("no docker here: `apt-get install docker.io docker-compose debootstrap iptables`")
    running = subprocess.run([_docker(), "info"], capture_output=True, check=False, timeout=30)
    if running.returncode == 0:
        yield Engine({})
        return
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        raise NoEngine("no engine answers, and only root can start one (`apt-get install docker.io`)")
    folder = Path(os.environ.get("TM_DOCKER_ROOT") or tempfile.mkdtemp(prefix="docker-"))
    socket = f"unix://{folder}/docker.sock"
    command = ["dockerd", "--data-root", f"{folder}/root", "--exec-root", f"{folder}/exec"]
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--pidfile", f"{folder}/pid", "-H", socket], stdout=log, stderr=log)
    started = Engine({"DOCKER_HOST": socket})
    try:
        deadline = time.monotonic() + 60
        while subprocess.run([_docker(), "info"], env=started.environment, capture_output=True, check=False).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoEngine(f"dockerd does not start: {(folder / 'log').read_text()[-300:]}")
            time.sleep(0.2)
        yield started
    finally:
        process.terminate()
        process.wait(60)
        if "TM_DOCKER_ROOT" not in os.environ:
            shutil.rmtree(folder, ignore_errors=True)
