"""The first local Ray of a machine: separate network, processes and home folder stand in for the machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ALONE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "sh", "-c"]
"""Whatever runs in there ends with it."""
CONNECT = "from jobs.launch.cluster import connect; client, address = connect(None); print(address, client.list_jobs())"
TAKE_PORT = (
    'import socket; s = socket.create_server(("127.0.0.1", 8265)); print(s, flush=True); list(iter(s.accept, 0))'
)
"""Takes Ray's usual port, and closes each connection to it."""
ROOT = Path(__file__).parents[2]
TMCTL = Path(sys.executable).with_name("tmctl")


def run_alone(home: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script as the first user of a machine."""
    prepared = f"ip link set lo up && cd {ROOT} && mkdir -p {home} && export HOME={home} && "
    if subprocess.run([*ALONE, prepared + "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no namespaces here: needs Linux, root and iproute2")
    return subprocess.run([*ALONE, prepared + script], capture_output=True, text=True, check=False)


def wheel_environment(folder: Path) -> Path:
    """The programs of a new environment with this project as a wheel; its dependencies are those of the tests."""
    source = folder / "source"  # a build leaves files where it builds
    for part in ("tinymusician", "jobs", "serve"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__", "vendor"))
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source / part)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    binaries = folder / "venv" / "bin"
    subprocess.run([str(binaries / "pip"), "install", "-q", "--no-deps", str(source)], check=True)
    shutil.rmtree(source)
    packages = next((folder / "venv" / "lib").glob("python3*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    ray = Path(sys.executable).with_name("ray").read_text().split("\n", 1)[1]
    (binaries / "ray").write_text(f"#!{binaries / 'python'}\n{ray}")
    (binaries / "ray").chmod(0o755)
    return binaries


def test_a_job_from_an_installed_wheel(tmp_path: Path) -> None:
    """Its code is the wheel's, on the workers too; the weights are those of a folder that the user names."""
    binaries = wheel_environment(tmp_path)
    (tmp_path / "prompts.txt").write_text("a slow waltz\na fast jig\na march\n")
    values = [
        f"sequences.prompts={tmp_path / 'prompts.txt'}",
        "sequences.seconds=0.5",
        "sequences.samples_per_prompt=1",
    ]
    values += ["training.steps=2", "training.batch_size=1", "training.warmup_steps=1"]
    words = " ".join(f"--set {value}" for value in values)
    variables = (
        f"export TINYMUSICIAN_WEIGHTS={ROOT / 'tinymusician/models/weights'} TMCTL_STORE=file://{tmp_path}/store; "
    )
    where = f"cd {tmp_path}; {binaries / 'python'} -c 'import jobs; print(jobs.__file__)'; "
    ended = run_alone(
        tmp_path / "home", f"{variables}{where}{binaries / 'tmctl'} submit distill band --name w {words} 2>&1"
    )
    code, *lines = ended.stdout.splitlines()
    assert code.startswith(str(tmp_path)), ended.stdout
    assert any(line.startswith("run w: SUCCEEDED") for line in lines), ended.stdout
    assert any(line.startswith("artifact band@sha256:") for line in lines), ended.stdout


def test_first_ray_on_a_machine_starts(tmp_path: Path) -> None:
    """Its token is made before anything asks for it: one command is enough."""
    ended = run_alone(tmp_path, f"{sys.executable} -c '{CONNECT}'")
    assert ended.stdout.strip() == "http://127.0.0.1:8265 []", ended.stderr
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0, "other users must not read the token"


def test_a_machine_without_shared_memory(tmp_path: Path) -> None:
    """One line says what to do."""
    devices = tmp_path / "devices"
    prepare = f"mkdir {devices}; mount -t tmpfs none {devices}; cp -a /dev/null /dev/zero /dev/urandom {devices}; "
    prepare += f"umount -l /dev/shm; mount --move {devices} /dev; "
    ended = run_alone(tmp_path, f"{prepare} {TMCTL} submit distill band --set training.steps=20")
    assert ended.stderr.splitlines()[-1].startswith("error: /dev/shm: no such folder"), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_taken_port(tmp_path: Path) -> None:
    """Ray starts on another port, which the next command remembers; `local-ray stop` stops this Ray."""
    ready = tmp_path / "ready"
    taken = f"{sys.executable} -c '{TAKE_PORT}' > {ready} & while ! [ -s {ready} ]; do sleep 0.1; done; "
    commands = [f"{sys.executable} -c '{CONNECT}'", f"{TMCTL} local-ray status", f"{TMCTL} local-ray stop"]
    ended = run_alone(tmp_path, taken + "; ".join([*commands, f"{TMCTL} local-ray status"]))
    first, remembered, stopped = ended.stdout.splitlines()
    address = first.removesuffix(" []")
    assert address.startswith("http://127.0.0.1:"), ended.stderr
    assert address != "http://127.0.0.1:8265"
    assert remembered == address
    assert stopped == f"local Ray at {address}: stopped"
    assert "ray stop`" not in ended.stderr.replace("tmctl local-ray stop`", "")
    assert ended.stderr.splitlines()[-1].startswith("error: local Ray: none is running")
