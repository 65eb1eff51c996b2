"""Ray on machines of their own: one is lost in the middle of each kind of work, one is cut off, one joins."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import requests

from serve.api_keys import KeyFile, new_key, write_keys
from tests.fork_server.start import fork_server
from tests.machines import ROOT, Machine, Network, NoMachines, network
from tests.ray_cluster import BIN, LONG, QUICK, losses, settings, shards, wait_for
from tests.s3_server import S3Server, s3_server
from tests.tiny import CLIPS
from tinymusician.artifacts.manifest import publish
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.s3 import S3Store
from tinymusician.evaluate.results import EvaluationResult

pytestmark = [pytest.mark.machines, pytest.mark.timeout(1200)]
LOG = logging.getLogger(__name__)
NODE = str(ROOT / "infra/docker/ray-node")
SMALL = "--object-store-memory=100000000"
CHECKS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "5",
}
"""Who is silent for a quarter of a minute is lost; by itself Ray waits for a minute."""
METRICS = {8090, 44217, 44227}
"""Ray's nodes, and on the head its autoscaler and its dashboard, serve their metrics without authentication."""


class Cluster:
    """A head without CPUs and workers of one CPU, each on a machine of its own; the store is on this machine."""

    def __init__(self, net: Network, s3: S3Server, shared_paths: list[Path], fork_server: dict[str, str]) -> None:
        self._net, self._shared_paths, self.token = net, shared_paths, secrets.token_hex(24)
        self.s3 = {"AWS_ENDPOINT_URL": s3.endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
        self.s3 |= {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
        self._ours = {**self.s3, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, **QUICK, **fork_server}
        self._ours["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "20"
        self.head = self._net.machine(shared_paths, {**self._ours, **CHECKS})
        self.head.serve(NODE, "head", "--num-cpus=0", f"--node-ip-address={self.head.address}", SMALL)
        self.address = f"http://{self.head.address}:8265"
        self.workers = [self.join(), self.join()]
        wait_for(lambda: self.alive() == {one.address for one in (self.head, *self.workers)})

    def machine(self) -> Machine:
        """A machine on the network that knows the token."""
        return self._net.machine(self._shared_paths, self._ours)

    def stranger(self) -> Machine:
        """A machine on the network that does not."""
        return self._net.machine([], {})

    def join(self) -> Machine:
        """A worker more."""
        made = self.machine()
        words = ("worker", f"{self.head.address}:6379", "--num-cpus=1", f"--node-ip-address={made.address}", SMALL)
        made.serve(NODE, *words)
        return made

    def lose(self, index: int) -> Machine:
        """A worker goes dark, and another takes its place; returns the new one."""
        self.workers[index].power_off()
        self.workers[index] = self.join()
        return self.workers[index]

    def alive(self) -> set[str]:
        """The addresses of the nodes that Ray takes for alive."""
        try:
            answer = requests.get(f"{self.address}/api/v0/nodes", headers=self.shown, timeout=5)
            nodes = answer.json()["data"]["result"]["result"] if answer.ok else []
        except requests.RequestException:
            return set()
        return {node["node_ip"] for node in nodes if node["state"] == "ALIVE"}

    @property
    def shown(self) -> dict[str, str]:
        """The header that shows the token."""
        return {"Authorization": f"Bearer {self.token}"}

    def tmctl(self, store: S3Store, *words: str) -> subprocess.CompletedProcess[str]:
        """Run tmctl on this machine, which is not one of the cluster's."""
        environment = {**os.environ, **self._ours, "TMCTL_STORE": store.url, "TMCTL_CLUSTER": self.address}
        command = [str(BIN / "tmctl"), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)

    def tmctl_json(self, store: S3Store, *words: str) -> Any:
        """What tmctl answers in JSON."""
        ended = self.tmctl(store, *words, "--json")
        assert ended.returncode == 0, ended.stderr + ended.stdout
        return json.loads(ended.stdout)

    def begun(self, store: S3Store, name: str, *words: str) -> RunStore:
        """Submit a run of two workers, and do not wait for it."""
        self.tmctl_json(store, "submit", *words, "--workers", "2", "--name", name, "--no-wait")
        return RunStore(store, name)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A file of API keys, and the key in it."""
    text, key_record = new_key("test", per_minute=10_000, max_concurrency=100, days=None)
    file = tmp_path_factory.mktemp("keys") / "api-keys.json"
    write_keys(file, KeyFile(keys=(key_record,)))
    return file, text


@pytest.fixture(scope="module")
def cluster(
    recipe: Path, evaluate_options: list[str], keys: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    reference = next(word for word in evaluate_options if "reference.audio" in word)
    socket = tmp_path_factory.mktemp("fork-server") / "socket"
    shared_paths = [recipe.parent, Path(reference.partition("=")[2]), keys[0].parent, socket.parent]
    try:
        with (
            network() as net,
            s3_server(tmp_path_factory.mktemp("swift"), net.address) as s3,
            fork_server(socket, dict(os.environ)) as variables,
            pytest.MonkeyPatch.context() as patch,
        ):
            cluster = Cluster(net, s3, shared_paths, variables)
            for name, value in cluster.s3.items():
                patch.setenv(name, value)
            yield cluster
    except NoMachines as error:
        pytest.skip(str(error))


@pytest.fixture
def store(cluster: Cluster) -> S3Store:
    return new_store()


def new_store() -> S3Store:
    bucket = f"b{secrets.token_hex(8)}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return S3Store(bucket, "store")


def succeeded(run: RunStore) -> None:
    wait_for(lambda: run.status().state in {"SUCCEEDED", "FAILED", "STOPPED"}, 600)
    assert run.status().state == "SUCCEEDED", run.log()


@pytest.fixture(scope="module")
def calm(cluster: Cluster, recipe: Path) -> RunStore:
    """A distillation that nothing happens to."""
    run = cluster.begun(new_store(), "calm", "distill", str(recipe), *settings(LONG))
    succeeded(run)
    return run


def at_step(run: RunStore, step: int) -> Callable[[], bool]:
    return lambda: run.store.exists(run.key(f"checkpoints/distill/step-{step:08}.json"))


def test_distillation_continues_after_a_machine_is_lost(
    cluster: Cluster, recipe: Path, store: S3Store, calm: RunStore
) -> None:
    """The run goes on from its last checkpoint, on a machine that was not there when it began, to the same losses."""
    run = cluster.begun(store, "d", "distill", str(recipe), *settings(LONG))
    wait_for(at_step(run, 10))
    joined = cluster.lose(0)
    began = time.monotonic()
    succeeded(run)
    LOG.info("lost machine: the run ended after %.0f s", time.monotonic() - began)
    assert "distill: from step" in run.log()
    assert losses(run.store, run.id) == pytest.approx(losses(calm.store, calm.id), abs=1e-5)
    assert joined.address in cluster.alive()


def test_distillation_continues_with_the_remaining_workers(
    cluster: Cluster, recipe: Path, store: S3Store, calm: RunStore
) -> None:
    """Nobody takes the lost machine's place: the other worker does both parts of every step, to the same losses."""
    run = cluster.begun(store, "e", "distill", str(recipe), *settings((*LONG, "training.min_workers=1")))
    wait_for(at_step(run, 10))
    cluster.workers[0].power_off()
    began = time.monotonic()
    succeeded(run)
    LOG.info("one worker is left: the run ended after %.0f s", time.monotonic() - began)
    assert len(cluster.alive()) == 2, "the head and a worker"
    cluster.workers[0] = cluster.join()
    assert losses(run.store, run.id) == pytest.approx(losses(calm.store, calm.id), abs=1e-5)


def test_distillation_continues_after_a_machine_is_shut_down(cluster: Cluster, recipe: Path, store: S3Store) -> None:
    """At SIGTERM Ray drains the node: the run writes a checkpoint, goes on from it, and counts no failure."""
    rare = ("training.checkpoint_every=2000", "training.validate_every=2000", "training.max_restarts=0")
    run = cluster.begun(store, "s", "distill", str(recipe), *settings((*rare, "training.steps=1500")))
    wait_for(lambda: (progress := run.progress()) is not None and progress.stage == "distill" and progress.step > 5)
    assert cluster.workers[0].run("pkill", "-TERM", "-f", "bin/ray start").returncode == 0
    succeeded(run)
    assert re.search(r"workers [01] will lose their machines: a checkpoint is written", run.log())
    assert re.search(r"distill: from step \d+, 1500 steps", run.log())
    wait_for(lambda: cluster.workers[0].address in cluster.alive(), 60)


def test_distillation_continues_after_a_network_cut_of_30_seconds(
    cluster: Cluster, recipe: Path, store: S3Store, calm: RunStore
) -> None:
    """Ray takes the machine for lost; when it is back it joins again, and the run goes on."""
    run = cluster.begun(store, "n", "distill", str(recipe), *settings(LONG))
    wait_for(at_step(run, 10))
    cut = cluster.workers[1]
    began = time.monotonic()
    cut.cut()
    wait_for(lambda: cut.address not in cluster.alive(), 60)
    time.sleep(max(0, 30 - (time.monotonic() - began)))
    cut.mend()
    succeeded(run)
    assert cut.address in cluster.alive()
    assert "distill: from step" in run.log()
    assert losses(run.store, run.id) == pytest.approx(losses(calm.store, calm.id), abs=1e-5)


def test_precompute_continues_after_a_machine_is_lost(cluster: Cluster, recipe: Path, store: S3Store) -> None:
    """No shard is missing, none differs from those that were made in peace."""
    few = settings(("sequences.prompts_per_shard=8",))
    run = cluster.begun(store, "p", "precompute", str(recipe), *few)
    wait_for(lambda: len(shards(store)) >= 3)
    cluster.lose(0)
    succeeded(run)
    peace = new_store()
    succeeded(cluster.begun(peace, "p", "precompute", str(recipe), *few))
    assert shards(store) == shards(peace)


def test_evaluation_continues_after_a_machine_is_lost(
    cluster: Cluster, evaluate_options: list[str], store: S3Store
) -> None:
    models = ["--model", "untrained", "--model", "teacher"]
    run = cluster.begun(store, "e", "evaluate", *evaluate_options, *models)
    wait_for(lambda: any(True for _ in store.list("shards/clips/")))
    cluster.lose(0)
    succeeded(run)
    generated = [line.partition("generated ")[2] for line in run.log().splitlines() if "generated " in line]
    assert len(generated) >= len(set(generated)) - 1 > 0, "only the clips of the lost machine are generated twice"
    assert len(list(store.list("shards/clips/"))) == 2 * CLIPS
    result = run.report(EvaluationResult)
    assert [model.distribution.clips for model in result.models] == [CLIPS, CLIPS]


@pytest.fixture
def served(cluster: Cluster, bundle: Path, keys: tuple[Path, str]) -> Iterator[str]:
    """The endpoint with an engine on each worker; its address."""
    store, (file, _) = new_store(), keys
    facts = {"recipe": {}, "lineage": {}, "metrics": {}, "licence": "none"}
    made = publish(store, bundle, name="tiny-bundle", kind="bundle", **facts)
    words = ["serve", made.reference, "--host", "0.0.0.0", "--api-keys", str(file), "--threads", "1", "--replicas", "2"]
    ended = cluster.tmctl(store, *words, "--detach")
    assert ended.returncode == 0, ended.stderr
    yield f"http://{cluster.head.address}:8000"
    assert cluster.tmctl(store, "serve", "--stop").returncode == 0


def test_serving_continues_after_a_machine_is_lost(cluster: Cluster, served: str, keys: tuple[Path, str]) -> None:
    """Whoever asked is answered with the same samples, and the machine that joins plays too."""

    answered: list[int] = []

    def ask(number: int) -> tuple[float, requests.Response]:
        began = time.monotonic()
        body: dict[str, Any] = {"prompt": "a happy march", "seconds": 2, "seed": number % 4}
        header = {"Authorization": f"Bearer {keys[1]}"}
        answer = requests.post(f"{served}/v1/audio/generations", json=body, headers=header, timeout=150)
        answered.append(number)
        return time.monotonic() - began, answer

    def request_many(count: int) -> tuple[float, float]:
        """95 % of them, and the last, took no longer."""
        with ThreadPoolExecutor(4) as clients:
            result = list(clients.map(ask, range(count)))
        assert [answer.status_code for _, answer in result] == [200] * count
        assert len({(number % 4, answer.content) for number, (_, answer) in enumerate(result)}) == 4
        seconds = [one for one, _ in result]
        return float(np.quantile(seconds, 0.95)), max(seconds)

    before, _ = request_many(40)
    with ThreadPoolExecutor(1) as beside:
        load = beside.submit(request_many, 40)
        wait_for(lambda: len(answered) >= 40 + 4)
        joined = cluster.lose(1)
        during, longest = load.result()
    wait_for(lambda: "engine" in joined.run("pgrep", "-af", "ServeReplica").stdout, 180)
    wait_for(lambda: request_many(8)[0] < 2 * before + 0.2, 60)
    LOG.info("95 %% of the requests: %.2f s, %.2f when a machine was lost, longest %.2f", before, during, longest)


def listening(machine: Machine) -> dict[int, str]:
    """The TCP ports on which others reach a machine, and whose they are."""
    listeners = {}
    for line in machine.run("ss", "-Hltnp").stdout.splitlines():
        place, owner = line.split()[3], line.partition('(("')[2].partition('"')[0]
        host, _, port = place.rpartition(":")
        if not host.startswith("127.") and host != "[::1]":
            listeners[int(port)] = owner
    return listeners


def test_a_machine_without_the_token_can_only_read_metrics(cluster: Cluster) -> None:
    """At every open port of head and worker, a machine without the token is refused."""
    stranger = cluster.stranger()
    for machine in (cluster.head, cluster.workers[0]):
        ports = listening(machine)
        assert METRICS & set(ports)
        for port, owner in ports.items():
            ended = stranger.run(sys.executable, "-m", "tests.knock", machine.address, str(port))
            result = json.loads(ended.stdout)
            if port in METRICS:
                assert result["/metrics"] == "200"
                assert "OK" not in result.values()
                continue
            answers = set(result.values())
            assert answers & {"401", "UNAUTHENTICATED"}, (owner, port, result)
            assert not answers & {"200", "OK"}, (owner, port, result)
