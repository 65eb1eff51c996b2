"""A cluster whose pools are at zero: Ray's autoscaler brings their nodes for a run that waits, and removes them later.

Nodes are Rays on this machine that claim resources, as the provider of Ray's own tests makes them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray as ray_library

from jobs.launch.ray_environment import AUTHENTICATION, read_token
from tests.ray_cluster import BIN, Ray, check_same_losses, losses, running_ray, settings, tmctl, tmctl_json, wait_for
from tests.s3_server import free_port
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore

pytestmark = pytest.mark.slow
HEAD_ID = "f" * 51 + "00000"
POOLS = {"cpu": ({"CPU": 2}, 2), "gpu": ({"CPU": 1, "GPU": 1}, 2)}
"""Of each pool a node's resources, and the most nodes."""


class GrowingRay(Ray):
    """A head without CPUs, and two pools at zero."""

    gcs = ""

    def start(self) -> None:
        gcs, dashboard = free_port(), free_port()
        self.address, self.gcs = f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}"
        config = self.folder / "autoscaler.json"
        config.write_text(json.dumps(autoscaler(f"{ray_library.util.get_node_ip_address()}:{gcs}")))
        self.environment |= {
            "TMCTL_CLUSTER": self.address,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        }
        command = [str(BIN / "ray"), "start", "--head", "--num-cpus=0", f"--autoscaling-config={config}"]
        command += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--temp-dir={self.folder}"]
        command += ["--include-dashboard=true", "--disable-usage-stats", f"--ray-client-server-port={free_port()}"]
        command += [f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=100000000"]
        subprocess.run(command, env=self.environment, check=True, stdout=subprocess.DEVNULL)


def autoscaler(gcs_address: str) -> dict[str, object]:
    """The configuration of Ray's autoscaler: a node that is idle for six seconds goes."""
    memory = {"object_store_memory": 100_000_000}
    kinds = {
        name: {"resources": {**resources, **memory}, "node_config": {}, "min_workers": 0, "max_workers": most}
        for name, (resources, most) in POOLS.items()
    }
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "gcs_address": gcs_address,
        "head_node_id": HEAD_ID,
    }
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "growing",
        "max_workers": 4,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 10.0,
        "provider": provider,
        "available_node_types": {"ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0}, **kinds},
        "head_node_type": "ray.head.default",
        "auth": {},
        "head_node": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{name}_commands": [] for name in commands},
    }


@pytest.fixture(scope="module")
def growing_ray() -> Iterator[GrowingRay]:
    with running_ray({}, GrowingRay) as ray:
        yield ray


def ray_command(ray: Ray, *words: str) -> str:
    """What a command of Ray prints; it has Ray's token if there is one."""
    environment = ray.environment | (dict([AUTHENTICATION]) if read_token() else {})
    ended = subprocess.run(
        [str(BIN / "ray"), *words], env=environment, check=False, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def nodes(ray: Ray) -> int:
    """The number of this Ray's nodes, the head included: each has a raylet on this machine."""
    return len(ray.processes("--raylet_socket_name"))


def test_runs_on_a_pool_at_zero(growing_ray: GrowingRay, recipe: Path, store: LocalStore) -> None:
    """The nodes come for the first; the second says what it waits for, and follows it; then the nodes go."""
    words = ("submit", "precompute", str(recipe), "--set", "training.device=cpu", "--workers", "2", "--no-wait")
    words += ("--set", "training.cpus_per_worker=2")
    seen: dict[str, list[tuple[str, str]]] = {"p1": [], "p2": []}
    for name, others in (("p1", ()), ("p2", ("--set", "training.seed=1"))):
        assert tmctl(growing_ray, store, *words, *others, "--name", name).returncode == 0

    def have_ended() -> bool:
        for name, states in seen.items():
            status = RunStore(store, name).status()
            states.append((status.state, status.message))
        return all(states[-1][0] in ("SUCCEEDED", "FAILED") for states in seen.values())

    wait_for(have_ended)
    for name, states in seen.items():
        assert states[-1] == ("SUCCEEDED", ""), RunStore(store, name).log()
    waited = {message for states in seen.values() for state, message in states if state == "WAITING"}
    assert any(re.match(r"waiting for 4 CPUs: \d of \d are free", message) for message in waited), seen
    wait_for(lambda: nodes(growing_ray) == 1)


def test_gpus_at_zero(growing_ray: GrowingRay, recipe: Path, store: LocalStore) -> None:
    """`auto` is refused; `--gpus` brings the nodes, and here says that their torch sees no GPU."""
    undecided = tmctl(growing_ray, store, "submit", "precompute", str(recipe))
    assert undecided.returncode == 1
    assert "training.device = auto: the cluster has no GPU now, and its autoscaler may add some" in undecided.stdout
    blind = tmctl(growing_ray, store, "submit", "precompute", str(recipe), "--gpus", "2", "--name", "g1")
    assert blind.returncode == 1
    assert "Ray assigned a GPU, and torch sees none" in blind.stdout
    assert "Traceback" not in blind.stdout + blind.stderr
    wait_for(lambda: nodes(growing_ray) == 1)


def test_more_gpus_than_the_pool_may_have(growing_ray: GrowingRay, recipe: Path, store: LocalStore) -> None:
    """The run waits, says for what, and can be stopped."""
    words = ("submit", "precompute", str(recipe), "--gpus", "3", "--name", "g3", "--no-wait")
    assert tmctl(growing_ray, store, *words).returncode == 0
    run = RunStore(store, "g3")
    wait_for(lambda: run.status().state == "WAITING")
    assert re.search(r"waiting for 3 GPUs: \d of \d are free", run.status().message)
    shown = tmctl(growing_ray, store, "status", "g3").stdout
    assert "state: WAITING" in shown
    assert "waiting for 3 GPUs" in shown
    assert tmctl(growing_ray, store, "stop", "g3").stdout == "run g3: STOPPED\n"


def test_any_number_of_workers_learns_the_same(growing_ray: GrowingRay, recipe: Path, store: LocalStore) -> None:
    """Four microbatches on one, two and three workers; five workers are too many."""
    words = ("submit", "distill", str(recipe), *settings(("training.batch_size=2", "training.device=cpu")))
    for workers in (1, 2, 3):
        name = ("--workers", str(workers), "--name", f"w{workers}")
        assert tmctl_json(growing_ray, store, *words, *name)["state"] == "SUCCEEDED"
    assert len(losses(store, "w1")) == 12
    for name in ("w2", "w3"):
        check_same_losses(losses(store, name), losses(store, "w1"))
    refused = tmctl(growing_ray, store, *words, "--workers", "5")
    assert "--workers 5: a step has 4 microbatches" in refused.stderr
    assert "at most 4 workers are allowed" in refused.stderr


def test_a_worker_has_one_gpu(growing_ray: GrowingRay, recipe: Path, store: LocalStore) -> None:
    both = tmctl(growing_ray, store, "submit", "distill", str(recipe), "--gpus", "2", "--workers", "3")
    assert both.stderr.strip() == "error: --workers 3 --gpus 2: a worker has one GPU; give one of them"


def test_a_machine_that_is_taken_away(growing_ray: GrowingRay, recipe: Path, store: LocalStore) -> None:
    """Ray's notice leads to a checkpoint; the run continues from it on another machine, and counts no failure."""
    rare = ("training.checkpoint_every=2000", "training.validate_every=2000", "training.max_restarts=0")
    values = settings((*rare, "training.steps=1500", "training.device=cpu", "training.cpus_per_worker=2"))
    words = ("submit", "distill", str(recipe), *values, "--workers", "2", "--name", "taken", "--no-wait")
    assert tmctl(growing_ray, store, *words).returncode == 0
    run = RunStore(store, "taken")
    wait_for(lambda: (progress := run.progress()) is not None and progress.stage == "distill" and progress.step > 10)
    before = run.checkpoint_keys()
    address = f"--address={growing_ray.address}"
    listed = ray_command(growing_ray, "list", "actors", "--format=json", "--filter=state=ALIVE", address)
    node = next(actor["node_id"] for actor in json.loads(listed) if "RayTrainWorker" in actor["class_name"])
    drain = ("drain-node", f"--address={growing_ray.gcs}", f"--node-id={node}", "--reason-message=spot")
    reason = ("--reason=DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds=30")
    ray_command(growing_ray, *drain, *reason)
    wait_for(lambda: bool(run.checkpoint_keys() - before), seconds=60)
    for pid in growing_ray.processes("--raylet_socket_name", node):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: run.status().state in ("SUCCEEDED", "FAILED"))
    assert run.status().state == "SUCCEEDED", run.status().message
    log = run.log()
    assert re.search(r"workers [01] will lose their machines: a checkpoint is written", log)
    assert re.search(r"distill: from step \d+, 1500 steps", log)
