"""The whole system in containers: a pipeline on two workers and S3, its release served, pulled and played."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import boto3
import pytest
import requests

from benchmarks.shapes import Size, write_musicgen
from tests.containers.engine import BASE, Engine, NoEngine, engine
from tests.ray_cluster import wait_for
from tests.s3_server import free_port, s3_server

pytestmark = [pytest.mark.containers, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[2]
SKIPPED = shutil.ignore_patterns(
    ".venv", ".git", "__pycache__", ".*_cache", "demo", "paper", ".environments", "results"
)
SMALL = {
    "training.steps": "6",
    "training.warmup_steps": "1",
    "training.validate_every": "3",
    "training.checkpoint_every": "3",
    "sequences.samples_per_prompt": "1",
    "sequences.seconds": "0.4",
    "quantize.plan": "paper",
    "quantize.sequences": "2",
    "quantize.seconds": "1",
    "quantize.parity_sequences": "1",
    "evaluate.clips": "24",
    "evaluate.seconds": "1",
    "evaluate.resamples": "20",
    "evaluate.agreement_clips": "0",
    "evaluate.cost_runs": "0",
}


class System:
    """The services of docker-compose.yml, in a copy of the checkout."""

    def __init__(self, docker: Engine, folder: Path) -> None:
        self.docker, self.folder, self.port, self.dashboard = docker, folder, free_port(), free_port()
        docker.environment |= {"COMPOSE_PROJECT_NAME": "tmtest", "TM_PORT": f"127.0.0.1:{self.port}"}
        docker.environment["TM_DASHBOARD"] = f"127.0.0.1:{self.dashboard}"
        self.url = f"http://127.0.0.1:{self.port}"

    def compose(self, *words: str, **more: Any) -> str:
        return self.docker.compose(*words, folder=self.folder, **more)

    def tmctl(self, *words: str, service: str = "head") -> str:
        return self.compose("exec", "-T", service, "tmctl", *words)

    def health(self, service: str) -> list[str]:
        ids = self.compose("ps", "-q", service).split()
        form = "{{if .State.Health}}{{.State.Health.Status}}{{else}}{{.State.Status}}{{end}}"
        return [self.docker.docker("inspect", "-f", form, one).strip() for one in ids]

    def health_output(self, service: str) -> str:
        """What the last health check printed."""
        one = self.compose("ps", "-q", service).strip()
        form = "{{range .State.Health.Log}}{{println .Output}}{{end}}"
        return (self.docker.docker("inspect", "-f", form, one).strip().splitlines() or [""])[-1]

    def wait(self, service: str, count: int = 1, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while self.health(service) != ["healthy"] * count:
            assert time.monotonic() < deadline, self.compose("logs", "--tail", "40", service)
            time.sleep(1)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    try:
        with engine() as docker:
            docker.make_base()
            folder = tmp_path_factory.mktemp("compose") / "checkout"
            shutil.copytree(ROOT, folder, ignore=SKIPPED)
            subprocess.run(["make", "-s", "secrets"], cwd=folder, check=True)
            for target in ("store", "proxy", "endpoint", "cluster"):
                words = ["build", "--network", "host", "--build-arg", f"BASE={BASE}"]
                words += ["-f", "infra/docker/Dockerfile", "--target", target, "-t", f"tinymusician-{target}"]
                docker.docker(*words, str(folder))
            system = System(docker, folder)
            system.compose("up", "-d", "--no-build")
            try:
                yield system
            finally:
                system.compose("down", "-v", "--remove-orphans", check=False)
    except NoEngine as error:
        pytest.skip(str(error))


def test_pipeline_publishes_a_bundle_that_generates_audio(system: System, tmp_path: Path) -> None:
    system.wait("store")
    system.wait("head")
    system.wait("worker", 2)
    wait_for(lambda: "API keys" in system.health_output("endpoint"), 60)
    key = json.loads(system.compose("run", "--rm", "api-keys", "create", "test", "--json"))["key"]
    wait_for(lambda: "has no root key yet" in system.health_output("endpoint"), 60)
    settings = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    submitted = system.tmctl("submit", "pipeline", "band", "--workers", "2", *settings, "--json")
    assert json.loads(submitted)["state"] == "SUCCEEDED"
    root = json.loads(system.tmctl("signing-keys", "show", "--json"))["root"][0]
    system.tmctl("artifacts", "promote", "band-bundle@candidate", "--override", "six steps make no musician")

    system.docker.environment["TM_ROOT_KEY"] = root
    system.compose("up", "-d", "--no-build")
    system.wait("endpoint")
    shut = requests.get(f"{system.url}/v1/models", timeout=10)
    assert shut.status_code == 401
    headers = {"Authorization": f"Bearer {key}"}
    (model,) = requests.get(f"{system.url}/v1/models", headers=headers, timeout=10).json()["data"]
    assert (model["id"], model["version"]) == ("band-bundle@stable", 1)
    body: dict[str, Any] = {"prompt": "a slow waltz for flute", "seconds": 2}
    answer = requests.post(f"{system.url}/v1/audio/generations", json=body, headers=headers, timeout=120)
    with wave.open(io.BytesIO(answer.content)) as file:
        assert file.getnframes() == 2 * file.getframerate()

    system.tmctl("pull", "band-bundle@stable", "--to", "/data/out", "--root-key", root)
    head = system.compose("ps", "-q", "head").strip()
    system.docker.docker("cp", f"{head}:/data/out", str(tmp_path / "band-bundle"))
    run_tmctl(tmp_path, "generate", "a slow waltz", "--model", "band-bundle", "--seconds", "2", "-o", "out.wav")


def run_tmctl(folder: Path, *words: str, succeeds: bool = True, **environment: str) -> str:
    """What this machine's own `tmctl` prints, in a folder that is its home too."""
    command = [str(Path(sys.executable).parent / "tmctl"), *words]
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder), **environment}
    ended = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode == 0) == succeeds, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_submitting_from_this_machine_says_what_is_missing(system: System, tmp_path: Path) -> None:
    token = (system.folder / "infra/secrets/ray-token").read_text()
    words = ("submit", "distill", "band", "--cluster", f"http://127.0.0.1:{system.dashboard}")
    assert "asks for a token" in run_tmctl(tmp_path, *words, succeeds=False)
    wrong = run_tmctl(tmp_path, *words, succeeds=False, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="a" * 48)
    assert "refuses the token in RAY_AUTH_TOKEN" in wrong
    without = run_tmctl(tmp_path, *words, succeeds=False, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    assert "may not see; set TMCTL_STORE to the cluster's store" in without


def test_workers_announce_their_share_of_the_machine(system: System) -> None:
    """Ray has no more CPUs and memory than the machine, and does not complain about shared memory."""
    code = "import json, ray; ray.init('auto', log_to_driver=False); print(json.dumps(ray.cluster_resources()))"
    resources = json.loads(system.compose("exec", "-T", "head", "python", "-c", code).splitlines()[-1])
    assert resources["CPU"] == max(2, (os.cpu_count() or 2) // 2 * 2)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert resources["memory"] + resources["object_store_memory"] < machine + 2e9, "the head has 2 GB of its own"
    assert "/dev/shm" not in system.compose("logs", "--no-color", "worker")  # Ray's warning names it


def test_the_store_gets_another_password(system: System) -> None:
    secrets = system.folder / "infra/secrets/store-credentials"
    before = secrets.read_text()
    subprocess.run(["make", "-s", "store-password"], cwd=system.folder, env=system.docker.environment, check=True)
    assert secrets.read_text() != before
    system.wait("store")
    system.wait("head")
    system.wait("worker", 2)
    assert "band" in system.tmctl("runs")


def test_tinymusician_trains_on_weights_from_the_store(system: System, tmp_path: Path) -> None:
    """Weights and prompts are imported from this machine; the two workers share one copy of each.

    TM_SHAPE=small has MusicGen-Small's shape instead of a tiny one.
    """
    folder, steps = tmp_path / "model", "training.steps=2"
    write_musicgen(folder, cast(Size, os.environ.get("TM_SHAPE", "tiny")), "float16")
    (folder / "three.txt").write_text("a slow waltz\na fast reel\na sad song\n")
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)  # for the containers' user
    once = (
        "run",
        "--rm",
        "--no-deps",
        "-v",
        f"{folder}:/in:ro",
        "--entrypoint",
        "tmctl",
        "head",
        "artifacts",
        "import",
    )
    system.compose(*once, "/in/three.txt", "--name", "three")
    (folder / "three.txt").unlink()
    imported = json.loads(system.compose(*once, "/in", "--name", "musicgen", "--licence", "CC0-1.0", "--json"))
    sets = ["teacher.model=musicgen", "sequences.prompts=three", "student.kind=prune_layers", "student.layers=[0,1]"]
    sets += [steps, "training.warmup_steps=1", "training.global_batch=2", "training.batch_size=1"]
    sets += ["sequences.seconds=0.4", "sequences.samples_per_prompt=2", "training.checkpoint_every=2"]
    words = [word for one in sets for word in ("--set", one)]
    result = json.loads(system.tmctl("submit", "distill", "tinymusician", "--workers", "2", *words, "--json"))
    assert result["state"] == "SUCCEEDED"
    student = json.loads(system.tmctl("artifacts", "show", result["artifact"], "--json"))
    assert student["lineage"]["teacher"] == imported["artifact"]
    assert student["licence"] == "CC0-1.0"
    cached = system.compose("exec", "-T", "worker", "ls", "/data/tinymusician/artifacts").split()
    assert imported["artifact"].partition("sha256:")[2] in cached


def test_containers_run_without_root_and_read_only(system: System) -> None:
    for service in ("store", "head", "worker", "endpoint", "proxy"):
        if not system.compose("ps", "-q", service).strip():
            continue
        assert system.compose("exec", "-T", service, "id", "-u").strip() == "10001"
        assert "Read-only" in system.compose("exec", "-T", service, "sh", "-c", "touch /x 2>&1 || true")


def test_only_the_head_can_sign_what_jobs_made(system: System) -> None:
    """Workers run users' code, and the endpoint faces the network."""
    public = json.loads(system.tmctl("signing-keys", "job", "--json"))["local"]
    assert system.compose("exec", "-T", "head", "sh", "-c", "cat /job-keys/*.pub").strip() == public
    for service in ("worker", "endpoint"):
        if system.compose("ps", "-q", service).strip():
            assert system.compose("exec", "-T", service, "ls", "/job-keys", "/keys").split() == ["/job-keys:", "/keys:"]


def test_no_container_that_runs_sees_the_root_key(system: System) -> None:
    """It is in a folder of this machine, which `setup` has filled."""
    (key,) = (system.folder / "infra/secrets/root-keys").glob("root-*.pem")
    for service in ("store", "head", "worker", "endpoint"):
        if system.compose("ps", "-q", service).strip():
            search = f"find / -path /proc -prune -o -name '{key.name}' -print 2>/dev/null || true"
            assert system.compose("exec", "-T", service, "sh", "-c", search) == "", service
    listed = system.compose("exec", "-T", "head", "ls", "/keys").split()
    assert {name.split("-")[0] for name in listed} == {"release", "pin.json"}
    assert "Read-only" in system.compose("exec", "-T", "head", "sh", "-c", "touch /keys/x 2>&1 || true")
    renewed = json.loads(system.compose("run", "--rm", "signing-keys", "renew", "--json"))
    assert renewed["version"] == 2


REACH = """
import socket
try:
    socket.create_connection(("head", 8265), 3)
except OSError as error:
    print("unreachable:", type(error).__name__)
"""
WRITE = """
import boto3, os
store = os.environ["TMCTL_STORE"].removeprefix("s3://").split("/")
s3 = boto3.client("s3")
objects = s3.list_objects_v2(Bucket=store[0], MaxKeys=5)["Contents"]
print(len(objects))
place = {"Bucket": store[0], "Key": objects[0]["Key"]}
for act in (lambda: s3.put_object(**place, Body=b"x"), lambda: s3.delete_object(**place)):
    try:
        act()
        print("written")
    except s3.exceptions.ClientError as error:
        print(error.response["Error"]["Code"])
"""


def test_the_endpoint_reaches_no_jobs_and_reads_only(system: System) -> None:
    """Whoever breaks into it finds neither the other Ray, nor its token, nor a way to write into the store."""
    run = ("run", "--rm", "--no-deps", "--entrypoint", "python", "endpoint", "-c")
    assert system.compose(*run, REACH).startswith("unreachable:")
    count, *refused = system.compose(*run, WRITE).split()
    assert int(count) == 5
    assert refused == ["AccessDenied", "AccessDenied"]
    tokens = {(system.folder / "infra/secrets" / name).read_text() for name in ("ray-token", "endpoint-token")}
    assert len(tokens) == 2


def test_endpoint_image_has_no_torch(system: System) -> None:
    words = ["run", "--rm", "--entrypoint", "python", "tinymusician-endpoint", "-c"]
    result = system.docker.docker(
        *words, "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('ray') is not None)"
    )
    assert result.split() == ["None", "True"]


def test_headers_that_do_not_arrive_end_a_connection(system: System) -> None:
    """The proxy's deadline is 10 s; Ray's proxy, behind it, has none."""
    system.wait("proxy")
    with socket.create_connection(("127.0.0.1", system.port), 60) as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\nX-Slow:")
        connection.settimeout(60)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""


def test_only_two_ports_are_published_on_loopback(system: System) -> None:
    listed = system.docker.docker("ps", "--filter", "label=com.docker.compose.project=tmtest", "--format", "{{.Ports}}")
    open_ = {part.strip() for line in listed.splitlines() for part in line.split(",") if "->" in part}
    assert all(part.startswith("127.0.0.1:") for part in open_)
    assert {part.rpartition("->")[2] for part in open_} <= {"8265/tcp", "8000/tcp"}


def test_cluster_refuses_requests_without_the_token(system: System) -> None:
    assert requests.get(f"http://127.0.0.1:{system.dashboard}/api/jobs/", timeout=10).status_code in {401, 403}


def test_store_can_be_another_s3_server(system: System, tmp_path: Path) -> None:
    """One on this machine, at the end of the containers' network, with credentials of its own."""
    form = "{{(index .IPAM.Config 0).Gateway}}"
    gateway = system.docker.docker("network", "inspect", "-f", form, "tmtest_inside").strip()
    with s3_server(tmp_path, gateway) as s3:
        bucket = {"endpoint_url": s3.endpoint, "region_name": "us-east-1"}
        keys = {"aws_access_key_id": s3.access_key, "aws_secret_access_key": s3.secret_key}
        client = boto3.client("s3", **bucket, **keys)
        client.create_bucket(Bucket="elsewhere")
        credentials = tmp_path / "credentials"
        credentials.write_text("[default]\n" + "".join(f"{name} = {value}\n" for name, value in keys.items()))
        credentials.chmod(0o644)
        other = {"TMCTL_STORE": "s3://elsewhere/store", "AWS_ENDPOINT_URL": s3.endpoint}
        before = dict(system.docker.environment)
        system.docker.environment |= {**other, "TM_S3_CREDENTIALS": str(credentials)}
        try:
            system.compose(
                "run", "--rm", "--no-deps", "-e", "TMCTL_KEYS=/tmp/keys", "setup", "tmctl", "signing-keys", "create"
            )
        finally:
            system.docker.environment = before
        assert client.list_objects_v2(Bucket="elsewhere")["KeyCount"] > 0
