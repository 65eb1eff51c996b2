"""The endpoint on a real Ray Serve: commands, killed engines, overload, clients that disconnect."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from tests.ray_cluster import BIN, Ray, wait_for
from tests.s3_server import free_port
from tinymusician.runtime.generator import GenerationRequest, load_generator

pytestmark = pytest.mark.slow
LOG = logging.getLogger(__name__)
MARCH = "a happy march"


class Served:
    """What is served on a Ray, out of a store of its own."""

    def __init__(self, ray: Ray, store: Path) -> None:
        self.port, self.ray = free_port(), ray
        self.environment = {**ray.environment, "TMCTL_STORE": store.as_uri()}
        self.url = f"http://127.0.0.1:{self.port}"
        self.words: tuple[str, ...] = ()

    def serve(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `tmctl serve`; if it succeeds, `words` are what is served now."""
        command = [str(BIN / "tmctl"), "serve", *words, "--port", str(self.port), "--detach"]
        ended = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=180, check=False)
        self.words = words if ended.returncode == 0 else self.words
        return ended

    def stop(self) -> None:
        """End what is served."""
        self.words = ()
        command = [str(BIN / "tmctl"), "serve", "--stop"]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)

    def generate(self, **body: Any) -> requests.Response:
        return requests.post(f"{self.url}/v1/audio/generations", json={"prompt": MARCH, **body}, timeout=120)

    def engines(self) -> list[int]:
        return self.ray.processes("ServeReplica:tinymusician:engine")

    def metric(self, name: str) -> float:
        """The sum of a metric over this Ray's processes; nan before its first measurement."""
        values = self.metrics(name)
        return sum(values.values()) if values else float("nan")

    def metrics(self, name: str) -> dict[str, float]:
        """A metric by its labels."""
        targets_file = json.loads((self.ray.folder / "prom_metrics_service_discovery.json").read_text())
        text = ""
        for target in targets_file[0]["targets"]:
            # Some ports are the same for all Rays of a machine: another one's, which may just have ended.
            with contextlib.suppress(requests.exceptions.ConnectionError):
                text += requests.get(f"http://{target}/metrics", timeout=10).text
        lines = re.findall(rf"^ray_{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE)
        return {labels: float(value) for labels, value in lines}

    def played(self) -> set[str]:
        """Ray's ids of the engines that have finished a request."""
        counts = self.metrics("tinymusician_real_time_factor_count")
        return {match[1] for labels in counts if (match := re.search(r'WorkerId="(\w+)"', labels))}


@pytest.fixture(scope="module")
def served(ray: Ray, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(ray, tmp_path_factory.mktemp("store"))
    yield served
    served.stop()


@pytest.fixture
def here(served: Served, bundle: Path) -> Served:
    """Two engines of one thread, and few places; deployed again only where something else is served."""
    words = (str(bundle), "--threads", "1", "--replicas", "2")
    words += ("--set", "limits.max_concurrent_requests=12", "--set", "limits.request_timeout_s=60")
    if served.words != words:
        ended = served.serve(*words)
        assert ended.returncode == 0, ended.stderr
    wait_for(lambda: len(served.engines()) == 2, 60)
    return served


def samples(content: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(content)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767


def test_served_audio_equals_the_engines(here: Served, bundle: Path) -> None:
    assert requests.get(f"{here.url}/ready", timeout=10).status_code == 200
    expected = load_generator(bundle, 1).generate(GenerationRequest(MARCH, seconds=2, seed=5))
    for stream in (False, True):
        answer = here.generate(seconds=2, seed=5, stream=stream)
        assert np.abs(samples(answer.content) - np.clip(expected, -1, 1)).max() < 1e-3
    assert "<title>TinyMusician" in requests.get(here.url, timeout=10).text
    file = requests.get(f"{here.url}/v1/bundles/{answer.headers['X-Bundle']}/tokenizer.json", timeout=10)
    assert file.content == (bundle / "tokenizer.json").read_bytes()
    assert requests.get(f"{here.url}/v1/bundles/{'0' * 64}/tokenizer.json", timeout=10).status_code == 404


def test_metrics_are_where_prometheus_looks(here: Served) -> None:
    before = here.metric("tinymusician_requests_total")
    here.generate()
    wait_for(lambda: here.metric("tinymusician_requests_total") > (0 if np.isnan(before) else before), 60)
    wait_for(lambda: here.metric("tinymusician_real_time_factor_count") > 0, 60)
    wait_for(lambda: here.metric("tinymusician_time_to_first_audio_seconds_count") > 0, 60)


def test_requests_survive_a_killed_engine(here: Served) -> None:
    """Every whole request that was accepted is answered, and soon a new engine plays too."""
    expected = {seed: here.generate(seconds=8, seed=seed).content for seed in range(4)}
    with ThreadPoolExecutor(8) as pool:

        def play_more() -> set[str]:
            assert {one.status_code for one in pool.map(lambda seed: here.generate(seed=seed), range(8))} == {200}
            return here.played()

        wait_for(lambda: len(play_more()) >= 2, 120)
        before = here.played()
        answers = [pool.submit(here.generate, seconds=8, seed=number % 4) for number in range(24)]
        wait_for(lambda: sum(one.done() for one in answers) >= 4)
        os.kill(here.engines()[0], signal.SIGKILL)
        result = [one.result() for one in answers]
        assert [one.status_code for one in result] == [200] * 24
        for number, one in enumerate(result):
            assert np.abs(samples(one.content) - samples(expected[number % 4])).max() < 1e-3
        wait_for(lambda: len(here.engines()) == 2, 60)
        wait_for(lambda: bool(play_more() - before), 120)


def test_tenfold_overload(here: Served) -> None:
    """Some are admitted and answered; all others are told at once after how many seconds to retry."""
    begin = threading.Barrier(120)

    def once(number: int) -> tuple[int, float, str]:
        begin.wait()
        answer = here.generate(seconds=6, seed=number)
        return answer.status_code, time.monotonic(), answer.headers.get("Retry-After", "")

    with ThreadPoolExecutor(120) as pool:
        result = list(pool.map(once, range(120)))
    admitted = [ended for status, ended, _ in result if status == 200]
    refused = [(ended, wait) for status, ended, wait in result if status == 429]
    LOG.info("admitted %d, refused %d", len(admitted), len(refused))
    assert len(admitted) >= 12
    assert len(admitted) + len(refused) == 120
    assert all(int(wait) >= 1 for _, wait in refused)
    assert np.median([ended for ended, _ in refused]) < max(admitted)


def test_hundreds_of_requests_with_clients_that_leave(here: Served) -> None:
    """Memory, places and rows are back where they were."""
    chance = random.Random(0)
    for number in range(40):
        here.generate(seconds=1, seed=number)
    processes = here.ray.processes("ServeReplica")
    before = _memory(processes)

    def once(number: int) -> None:
        body = {"prompt": MARCH, "seconds": chance.choice((0.5, 1, 4)), "stream": True, "seed": number}
        url = f"{here.url}/v1/audio/generations"
        try:
            with requests.post(url, json=body, stream=True, timeout=chance.choice((0.05, 0.5, 60))) as answer:
                for _ in answer.iter_content(400):
                    if chance.random() < 0.3:
                        return
        except requests.exceptions.RequestException:
            return

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(once, range(400)))
    after = _memory(processes)
    LOG.info("memory %.0f MB before, %.0f MB after", before / 1e6, after / 1e6)
    assert after < 1.05 * before
    wait_for(lambda: here.metric("tinymusician_requests_in_flight") == 0, 60)
    wait_for(lambda: here.generate(seconds=0.5).status_code == 200, 60)
    wait_for(lambda: here.metric("tinymusician_batch_rows") == 0, 60)


def _memory(processes: list[int]) -> int:
    import psutil

    assert len(processes) == 4  # two engines, the ingress and what answers questions: all must live on
    return sum(psutil.Process(pid).memory_info().rss for pid in processes)


def test_bundle_update_drops_no_request(here: Served, bundle: Path, tmp_path: Path) -> None:
    """`tmctl serve` again, under load."""
    import shutil

    shutil.copytree(bundle, tmp_path / "other")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["name"] = "other"
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))
    statuses: list[int] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            statuses.append(here.generate(seconds=1).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    done = here.serve(str(tmp_path / "other"), "--threads", "1", "--replicas", "2")
    ended.set()
    thread.join()
    assert done.returncode == 0, done.stderr
    assert set(statuses) == {200}
    (model,) = requests.get(f"{here.url}/v1/models", timeout=10).json()["data"]
    assert model["id"] == "other"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "nothing"),
        (["x@stable", "--root-key", "0" * 64], "root documents"),
        ([".", "--host", "0.0.0.0"], "API keys"),
        ([".", "--set", "limits.seconds=0"], "limits.seconds"),
        ([".", "--set", "loudness=11"], "loudness"),
        ([".", "--api-keys", "missing.json"], "missing.json"),
    ],
)
def test_invalid_bundle_is_one_line_and_the_deployment_stays(here: Served, words: list[str], said: str) -> None:
    ended = here.serve(*words)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert here.generate().status_code == 200


ELSEWHERE = """
from jobs.launch.serve_deploy import ServeDeployment
deployment = ServeDeployment(None, start=False)
deployment.place = {"host": "127.0.0.1", "port": 1}
deployment.wait()
"""


def test_an_endpoint_that_listens_elsewhere_is_stopped(here: Served) -> None:
    """As after the start of another Ray Serve between the check before the deployment and the deployment."""
    ended = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], env=here.environment, capture_output=True, text=True, check=False
    )
    assert f"Ray Serve listens at 127.0.0.1:{here.port}, but 127.0.0.1:1 was requested" in ended.stderr
    _gone(here)


def test_it_is_ended_by_a_command_and_by_control_c(served: Served, bundle: Path) -> None:
    served.stop()
    _gone(served)
    command = [str(BIN / "tmctl"), "serve", str(bundle), "--port", str(served.port), "--threads", "1"]
    buffered = {name: value for name, value in served.environment.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(command, env=buffered, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert served.url in process.stdout.readline()
    assert served.generate().status_code == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    _gone(served)


def test_requests_that_run_are_completed_when_it_stops(here: Served) -> None:
    """Eight clients generate one clip after another. None is cut off; the next is told to come again."""

    def until_refused(seed: int) -> list[requests.Response]:
        answers = [here.generate(seconds=30, seed=seed)]
        while answers[-1].status_code == 200:
            answers.append(here.generate(seconds=30, seed=seed))
        return answers

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(until_refused, seed) for seed in range(8)]
        command = [str(BIN / "tmctl"), "serve", "--stop"]
        stop = subprocess.Popen(command, env=here.environment, stderr=subprocess.PIPE, text=True)
        here.words = ()
        answers = [client.result() for client in clients]
    for complete in (one for each in answers for one in each[:-1]):
        with wave.open(io.BytesIO(complete.content)) as file:
            assert file.getnframes() == 30 * file.getframerate()
    refusals = [each[-1] for each in answers]
    assert {(one.status_code, one.json()["error"]["code"]) for one in refusals} == {(503, "stopping")}
    assert all(int(one.headers["Retry-After"]) >= 1 for one in refusals)
    assert any("requests run" in one.json()["error"]["message"] for one in refusals)
    assert stop.wait(60) == 0
    _gone(here)


def test_downloads_that_nobody_reads_cost_the_proxy_little(served: Served, bundle: Path, tmp_path: Path) -> None:
    """Four clients ask for 200 MB each and read 20 bytes. A fifth is told to come again."""
    folder = tmp_path / "large"
    shutil.copytree(bundle, folder)
    with (folder / "padding").open("wb") as file:
        file.truncate(200_000_000)
    content = json.loads((folder / "manifest.json").read_text())
    digest = hashlib.sha256(bytes(200_000_000)).hexdigest()
    content["files"].append({"path": "padding", "role": "plan", "size": 200_000_000, "sha256": digest})
    (folder / "manifest.json").write_text(json.dumps(content))
    ended = served.serve(str(folder), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    (model,) = requests.get(f"{served.url}/v1/models", timeout=10).json()["data"]
    path = f"/v1/bundles/{model['digest']}/padding"
    (proxy,) = served.ray.processes("ray::ProxyActor")
    before = resident_bytes(proxy)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert client.recv(20).startswith(b"HTTP/1.1 200")
        refused = requests.get(f"{served.url}{path}", timeout=10)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "busy")
        assert resident_bytes(proxy) - before <= 100_000_000
    rest = {"Range": "bytes=150000000-"}
    wait_for(lambda: requests.get(f"{served.url}{path}", headers=rest, timeout=60).content == bytes(50_000_000), 30)


def resident_bytes(process: int) -> int:
    """The resident memory of a process."""
    (line,) = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def test_questions_are_answered_through_serve(served: Served, bundle: Path) -> None:
    """Through Serve: answers, files of the bundle, and the best of several clips; errors keep their form."""
    ended = served.serve(str(bundle), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    clip = served.generate(seconds=1, seed=5).content
    address = f"{served.url}/v1/audio/questions"
    answer = requests.post(
        address, files={"file": ("a.wav", clip)}, data={"question": "Which instrument plays?"}
    ).json()
    assert sum(option["probability"] for option in answer["answers"][0]["options"]) == pytest.approx(1, abs=1e-4)
    refused = requests.post(address, files={"file": ("a.wav", b"no audio")})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "file")
    about = requests.get(f"{served.url}/v1/models", timeout=10).json()["questions"]
    manifest = requests.get(f"{served.url}/v1/bundles/{about['digest']}/manifest.json", timeout=10).content
    assert hashlib.sha256(manifest).hexdigest() == about["digest"]
    best = served.generate(prompt="a march for flute", seconds=1, seed=5, best_of=2)
    assert best.status_code == 200, best.text
    assert len(best.headers["X-Adherence"].split(",")) == 2
    assert served.generate(best_of=2).json()["error"]["field"] == "best_of"


def test_a_second_serve_replaces_the_first(served: Served, bundle: Path) -> None:
    """It says so, the first process ends without stopping the endpoint, and both name the bundle that answers."""
    command = [str(BIN / "tmctl"), "serve", str(bundle), "--port", str(served.port), "--threads", "1"]
    first = subprocess.Popen(command, env=served.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stderr is not None
    digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert first.stdout.readline().strip() == f"{bundle} is served at {served.url} (bundle {digest[:12]})"
    second = served.serve(str(bundle), "--threads", "1", "--set", "limits.seconds=5")
    assert f"replaces the endpoint of {bundle}" in second.stderr
    assert first.wait(30) == 0
    assert "another `tmctl serve` has replaced this endpoint" in first.stderr.read()
    assert served.generate().status_code == 200
    served.stop()


def test_a_taken_port(served: Served, bundle: Path) -> None:
    """It is an error before anything starts, and the next call on another port tells the truth."""
    served.stop()
    _gone(served)
    with socket.create_server(("127.0.0.1", served.port)):
        ended = served.serve(str(bundle), "--threads", "1")
        assert ended.returncode == 1
        assert f"--port {served.port}: another program uses it" in ended.stderr.splitlines()[-1]
        other = free_port()
        command = [str(BIN / "tmctl"), "serve", str(bundle), "--port", str(other), "--threads", "1", "--detach"]
        ended = subprocess.run(command, env=served.environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert requests.get(f"http://127.0.0.1:{other}/ready", timeout=10).status_code == 200
    served.stop()


def _gone(served: Served) -> None:
    def refused() -> bool:
        try:
            return requests.get(f"{served.url}/live", timeout=5).status_code != 200
        except requests.exceptions.ConnectionError:
            return True

    wait_for(refused, 60)
