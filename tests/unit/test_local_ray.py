"""The local Ray and the address of a cluster: whose Ray it is, what wins, proxies, and what a job waits for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import pytest

from jobs.cli.main import extra_of
from jobs.launch import local_ray, serve_deploy
from jobs.launch.ray_environment import bypass_proxies, configured_address, explicit_address
from jobs.launch.shortage import ENDPOINT, ResourceClaim, current_shortages, shortages
from serve.config import reachable_url
from tinymusician.errors import ClusterError


@contextmanager
def dashboard(
    token: str | None,
    content: bytes = b'{"ray_version": "2.60.0"}',
    headers: Mapping[str, str] = MappingProxyType({}),
    answers: Mapping[str, tuple[int, bytes]] | None = None,
) -> Iterator[str]:
    """A server that answers as Ray's dashboard does; with a token, only to requests that have it.

    With `answers` it answers to their paths only, and with an error to others.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = token is None or self.headers["Authorization"] == f"Bearer {token}"
            status, body = (200, content) if allowed else (403, b"Forbidden")
            if answers is not None:
                status, body = answers.get(self.path.partition("?")[0], (500, b"broken"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a token."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "TMPDIR", "RAY_TMPDIR", "TMCTL_CLUSTER", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("mine\n")
    return tmp_path


@pytest.mark.usefixtures("home")
def test_only_a_ray_that_accepts_the_users_token_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with dashboard("mine") as address:
        assert local_ray.accepts_token(address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "other")
        assert not local_ray.accepts_token(address)
    with dashboard(None) as address:
        assert local_ray.accepts_token(address)
    assert not local_ray.accepts_token(address), "it has ended"
    with dashboard(None, b"<title>another program</title>") as address:
        assert not local_ray.accepts_token(address)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs another user")
@pytest.mark.usefixtures("home")
def test_the_token_is_not_sent_to_another_user() -> None:
    """Whoever has it can run code as its owner."""
    server = "import os, socket; os.setgroups([]); os.setgid(65534); os.setuid(65534); "
    server += "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); "
    server += "print(s.accept(), flush=True)"
    with subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        assert not local_ray.accepts_token(f"http://127.0.0.1:{port}")
        other.terminate()
        assert other.stdout.read() == "", "nobody has connected"


def test_the_address_is_remembered(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ray, "LOCAL", "http://127.0.0.1:1")
    assert local_ray.find() is None
    state = home / "state" / "tinymusician" / "local-ray.json"
    state.parent.mkdir(parents=True)
    with dashboard("mine") as address:
        state.write_text(json.dumps({"address": "http://127.0.0.1:2", "gcs_port": 54321}))
        assert local_ray.find() is None
        sleeping = [sys.executable, "-c", "import time; time.sleep(600)", "--gcs_server_port=54321"]
        with subprocess.Popen(sleeping) as ray:
            assert local_ray.find() == "http://127.0.0.1:2", "it runs, and may be too busy to answer"
            assert local_ray.stop() == "http://127.0.0.1:2"
            assert ray.wait(10) is not None
        state.write_text("damaged")
        assert local_ray.find() is None
        monkeypatch.setattr(local_ray, "LOCAL", address)
        assert local_ray.find() == address
    with pytest.raises(ClusterError, match="none that tmctl started is running"):
        local_ray.stop()


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TMPDIR", "/tmp/" + "x" * 60, r"TMPDIR /tmp/x+: .* at most \d+ bytes are possible; set RAY_TMPDIR=/tmp"),
        ("RAY_AUTH_TOKEN_PATH", "/proc/nothing/token", "folder that cannot be written .*; set RAY_AUTH_TOKEN_PATH"),
    ],
)
def test_what_the_machine_lacks_is_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(local_ray, "LOCAL", "http://127.0.0.1:1")
    with pytest.raises(ClusterError, match=message) as error:
        local_ray.find_or_start()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("failures", "starts"), [("timed out during startup", 2), ("another reason", 1)])
def test_a_start_that_takes_too_long_is_tried_twice(
    home: Path, monkeypatch: pytest.MonkeyPatch, failures: str, starts: int
) -> None:
    """A program in Ray's place, which fails whenever it is to start a head."""
    ray = home / "ray"
    script = f'#!/bin/sh\necho "$1" >> {home}/calls\n[ "$1" = start ] || exit 0\necho "{failures}" >&2\nexit 1\n'
    ray.write_text(script)
    ray.chmod(0o700)
    monkeypatch.setattr(local_ray, "_ray", lambda: str(ray))
    with pytest.raises(ClusterError, match=failures):
        local_ray.start()
    assert (home / "calls").read_text().split().count("start") == starts
    assert not (home / "state").exists(), "no Ray is remembered"


@pytest.mark.usefixtures("home")
def test_an_explicit_address_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured_address(None) is None
    monkeypatch.setenv("RAY_ADDRESS", "http://ray:8265")
    assert configured_address(None) == "http://ray:8265"
    monkeypatch.setenv("TMCTL_CLUSTER", "http://tmctl:8265")
    assert configured_address(None) == "http://tmctl:8265"
    assert configured_address("http://explicit:8265") == "http://explicit:8265"
    with pytest.raises(ClusterError, match="'head:6379': the address of Ray's dashboard is needed"):
        configured_address("head:6379")
    with explicit_address():
        assert "RAY_ADDRESS" not in os.environ
    assert os.environ["RAY_ADDRESS"] == "http://ray:8265"


def test_proxies_never_affect_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):  # so that both are restored, whatever is set below
        monkeypatch.setenv(name, "*")
    monkeypatch.delenv("NO_PROXY")
    bypass_proxies()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "*", "which is no pattern among others"
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("NO_PROXY", "internal.example, ::1")
    bypass_proxies()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "internal.example,::1,localhost,127.0.0.1"
    opener = urllib.request.build_opener()  # `urlopen` would keep these proxies for other tests
    with dashboard(None) as address, opener.open(address, timeout=10) as answer:
        assert answer.status == 200


@pytest.mark.usefixtures("home")
def test_a_cluster_that_cannot_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state API answers with an error of Ray's own kind."""
    answers = {"/api/version": (200, b'{"version": "4", "ray_version": "2.60.0", "ray_commit": ""}')}
    with dashboard(None, answers=answers) as address:
        assert current_shortages(address, ENDPOINT) == []


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("192.168.1.5", "http://192.168.1.5:80"),
        ("::", "http://[::1]:80"),
        ("fe80::1", "http://[fe80::1]:80"),
        ("localhost", "http://localhost:80"),
    ],
)
def test_the_address_of_an_endpoint(host: str, url: str) -> None:
    assert reachable_url(host, 80) == url


def test_an_endpoint_that_answers_with_another_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_deploy, "_TIMEOUT_SECONDS", 1.0)
    with dashboard(None, headers={"X-Bundle": "a" * 64}) as url:
        assert serve_deploy.bundle_at(url, None) == serve_deploy.bundle_at(url, "a" * 64) == "a" * 64
        with pytest.raises(ClusterError, match="answers with bundle aaaaaaaaaaaa"):
            serve_deploy.bundle_at(url, "b" * 64)
    with dashboard(None) as url, pytest.raises(ClusterError, match="another program answers"):
        serve_deploy.bundle_at(url, None)
    with pytest.raises(ClusterError, match="does not answer"):
        serve_deploy.bundle_at("http://127.0.0.1:1", None)


def test_every_optional_package_has_an_extra() -> None:
    for package in ("ray", "torch", "transformers", "psutil", "scipy", "matplotlib"):
        assert extra_of(package) == "cluster"
    for package, extra in {"onnx": "quantize", "optimum": "quantize", "boto3": "s3", "pyloudnorm": "loudness"}.items():
        assert extra_of(package) == extra
    assert extra_of("numpy") is extra_of("nothing") is None


def test_shortages() -> None:
    """Requested 2, and 2 - 1 are free; GPUs suffice. What others wait for does not count."""
    claims = [
        ResourceClaim(ENDPOINT, {"CPU": 1}, is_pending=False),
        ResourceClaim("run a", {"GPU": 1}, is_pending=False),
        ResourceClaim("run b", {"CPU": 1, "GPU": 1}, is_pending=True),
        ResourceClaim("run b", {"CPU": 1}, is_pending=True),
        ResourceClaim("run c", {"CPU": 64}, is_pending=True),
    ]
    (shortage,) = shortages(claims, {"CPU": 2, "GPU": 2}, "run b")
    assert str(shortage) == "waiting for 2 CPUs: 1 of 2 are free; the endpoint uses 1"
    assert shortages(claims, {"CPU": 3, "GPU": 2}, "run b") == []
    assert shortages(claims, {"CPU": 0, "GPU": 0}, "run a") == [], "it runs"
