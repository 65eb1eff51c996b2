"""What a worker of a job knows, what of the cluster it can have, and how a training stage runs on Ray Train."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from platformdirs import user_cache_path

from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.runs import RunRecord, RunStore
from tinymusician.errors import ClusterError, NonFiniteLossError, RunError, StoreError, TinyMusicianError
from tinymusician.recipe import Recipe, TrainingConfig, parse_recipe

_HEARTBEAT_SECONDS = 2.0
_LOOK_SECONDS, _RESOURCE_TIMEOUT_SECONDS = 5.0, 600.0
_MAX_WAIT_SECONDS = 24 * 3600


@dataclass(frozen=True)
class WorkerContext:
    """What a worker knows: its place among the others, its run, and where it may keep files."""

    store_url: str
    run_id: str
    rank: int
    world: int
    device: str

    @cached_property
    def run(self) -> RunStore:
        """The run's folder in the store."""
        return RunStore(open_store(self.store_url), self.run_id)

    @cached_property
    def record(self) -> RunRecord:
        """What was asked for."""
        return self.run.record()

    @cached_property
    def recipe(self) -> Recipe:
        """The run's resolved recipe."""
        return parse_recipe(self.record.recipe, self.run_id)

    @property
    def cache(self) -> Path:
        """A folder of this machine that outlives the run."""
        return user_cache_path("tinymusician", ensure_exists=True)

    @property
    def threads(self) -> int:
        """The CPUs that Ray gave this worker; 0 outside of Ray, which stands for all."""
        return int(os.environ.get("OMP_NUM_THREADS", "0"))

    def precision(self) -> Literal["float32", "bfloat16"]:
        """The recipe's precision, with `auto` settled by the device."""
        import torch

        requested = self.recipe.training.precision
        if requested != "auto":
            return requested
        return "bfloat16" if self.device == "cuda" and torch.cuda.is_bf16_supported() else "float32"

    def meet(self) -> None:
        """Wait until every worker is here."""
        import torch.distributed as dist

        if self.world > 1:
            dist.barrier()


Work = Callable[[WorkerContext], None]


class SidecarActors(NamedTuple):
    """Actors beside the workers, `number` of them, each with what a worker has of the cluster.

    `start` takes the run, whether they have GPUs, and how many CPUs; they are there while its context lasts.
    """

    number: int
    start: Callable[[RunStore, bool, int], contextlib.AbstractContextManager[Any]]


NO_SIDECARS = SidecarActors(0, lambda run, gpu, cpus: contextlib.nullcontext())


def run_ray_train(work: Work, run: RunStore, sidecars: SidecarActors = NO_SIDECARS) -> None:
    """Run `work` on the run's Ray Train workers, each with a GPU if the cluster has any, restarted when they die.

    Where the recipe allows fewer, Ray goes on with those that are left, and adds others when machines come back.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    record = run.record()
    training, workers = parse_recipe(record.recipe, run.id).training, record.workers
    least = min(training.min_workers or workers, workers)
    gpu, cpus = allocate_resources(workers + sidecars.number, least + sidecars.number)
    with tempfile.TemporaryDirectory() as folder, sidecars.start(run, gpu, cpus):
        trainer = TorchTrainer(
            _worker_entry_point,
            train_loop_config={"work": work, "store_url": run.store.url, "run_id": run.id, "gpu": gpu},
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=_MAX_WAIT_SECONDS),
            scaling_config=ScalingConfig(
                num_workers=workers if least == workers else (least, workers),
                use_gpu=gpu,
                resources_per_worker={"CPU": cpus},
            ),
            run_config=RunConfig(
                name=run.id,
                storage_path=folder,
                failure_config=FailureConfig(max_failures=training.max_restarts + training.max_skipped_steps),
            ),
        )
        trainer.fit()


def allocate_resources(workers: int, least: int | None = None) -> tuple[bool, int]:
    """Join the cluster that this job runs on: whether each of `workers` can have a GPU, and how many CPUs.

    What an autoscaler may add counts as well; where a node was lost, another one is waited for, unless `least` workers
    find room on those that are left.

    Raises:
        ClusterError: there are fewer CPUs than workers, or GPUs but fewer of them.
    """
    import ray
    from ray._private.state import state  # what Ray's own libraries ask; there is no public way

    if not ray.is_initialized():
        # Ray Train's helpers look for their cluster by themselves, and take another one's where two run on a machine.
        address = {name: os.environ[name] for name in ("RAY_ADDRESS",) if name in os.environ}
        environment = {"env_vars": address, "worker_process_setup_hook": "jobs.worker.gloo.choose"}
        ray.init(address="auto", runtime_env=environment, log_to_driver=True, logging_level="WARNING")
    most = state.get_max_resources_from_cluster_config() or {}
    deadline = time.monotonic() + _RESOURCE_TIMEOUT_SECONDS
    while True:
        nodes = ray.nodes()
        gpus = max(ray.cluster_resources().get("GPU", 0), most.get("GPU", 0))
        try:
            if has_gpus_for(workers, int(gpus), least):
                return True, 1
            here = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
            return False, cpus_per_worker(here, workers, int(most.get("CPU", 0)), least)
        except ClusterError:
            if all(node["Alive"] for node in nodes) or time.monotonic() > deadline:
                raise
        print("a node was lost: waiting for another one", flush=True)
        time.sleep(_LOOK_SECONDS)


def has_gpus_for(workers: int, gpus: int, least: int | None = None) -> bool:
    """Whether each of `workers`, or at least of `least`, has one of a cluster's `gpus`; without any, CPUs have to do.

    Raises:
        ClusterError: there are some, but too few. What was begun on GPUs would go on on CPUs, without a word.
    """
    if 0 < gpus < (least or workers):
        raise ClusterError(
            f"the cluster has {gpus} GPU(s) for {workers} workers and actors, which need one each; "
            "ask for fewer --workers"
        )
    return gpus > 0


def cpus_per_worker(nodes: list[int], workers: int, most: int = 0, least: int | None = None) -> int:
    """The most CPUs that every one of `workers` can have, each on one of the cluster's `nodes` of so many CPUs.

    Where an autoscaler may bring the cluster to `most` CPUs, it is asked for one a worker if these do not suffice; so
    it is if they suffice for `least` workers.

    Raises:
        ClusterError: there are fewer CPUs than workers.
    """
    for cpus in range(max(nodes, default=0), 0, -1):
        if sum(node // cpus for node in nodes) >= workers:
            return cpus
    if most >= workers or (least is not None and sum(nodes) >= least):
        return 1
    raise ClusterError(f"--workers {workers}: the cluster has {sum(nodes)} CPUs; at most as many workers are allowed")


def _worker_entry_point(config: dict[str, Any]) -> None:
    """What Ray Train calls in every worker process."""
    import ray.train

    if not config["gpu"]:
        os.environ["DS_ACCELERATOR"] = "cpu"
    place = ray.train.get_context()
    device = "cuda" if config["gpu"] else "cpu"
    context = WorkerContext(
        config["store_url"], config["run_id"], place.get_world_rank(), place.get_world_size(), device
    )
    _run_work(config["work"], context)


def _run_work(work: Work, context: WorkerContext) -> None:
    """Do the work. What it refused once it would refuse again: after Ray Train's restart the same error comes at once.

    A store that did not answer may answer later, so its errors are worth the restart.
    """
    refused = context.run.key("refused.txt")
    if context.run.store.exists(refused):
        raise RunError(context.run.store.get(refused).decode())
    try:
        work(context)
    except TinyMusicianError as error:
        if not isinstance(error, StoreError):
            context.run.store.put(refused, str(error).encode())
        raise


@dataclass(frozen=True)
class TrainingStage:
    """A training stage: a task with its plan and the optimizer's settings. `name` is also its folder in the run."""

    name: str
    task: Any
    plan: Any
    settings: Any
    batch_size: int
    zero: Literal[0, 1, 2, 3]
    precision: Literal["float32", "bfloat16"]


def trainer_config(training: TrainingConfig, steps: int, rate: float, judge: str, codes_a_part: int = 0) -> Any:
    """A stage's plan with the recipe's rhythm; see `training.loop.Plan`."""
    from tinymusician.training.loop import TrainerConfig

    return TrainerConfig(
        steps=steps,
        peak_rate=rate,
        warmup=min(training.warmup_steps, steps - 1),
        log_every=training.log_every,
        validate_every=training.validate_every,
        checkpoint_every=training.checkpoint_every,
        judge=judge,
        codes_a_part=codes_a_part,
        seed=training.seed,
        parts=training.parts or 0,
    )


def train(context: WorkerContext, stage: TrainingStage) -> None:
    """Run a stage's loop from its latest checkpoint in the store, if there is one, to its end."""
    from jobs.worker.prometheus import PrometheusLogger
    from jobs.worker.tensorboard import TensorBoardLogger
    from tinymusician.training.checkpoint import CheckpointManager
    from tinymusician.training.deepspeed_engine import DeepSpeedEngine
    from tinymusician.training.loop import RankInfo, Trainer
    from tinymusician.training.metrics import MetricSink, MetricsLog

    store, left_out = context.run.store, SkippedSteps(context, stage.name)
    plan = replace(stage.plan, left_out=left_out.steps())
    checkpoints = CheckpointManager(store, context.run.key(f"checkpoints/{stage.name}"), plan.judge)
    start = checkpoints.latest()
    if context.rank == 0:
        begun = "from the beginning" if start is None else f"from step {start.step}"
        print(f"{stage.name}: {begun}, {plan.steps} steps", flush=True)
    state = start.state if start is not None else None
    worker = RankInfo(context.rank, context.world)
    turns = worker.turns(plan.parts or context.world)
    engine = DeepSpeedEngine(
        stage.task.module, stage.settings, stage.batch_size, stage.zero, stage.precision, state, turns
    )
    resume_at = start.step if start is not None else -1
    watchers: list[MetricSink] = []
    if context.rank == 0:
        watchers = [TensorBoardLogger(context.run, stage.name, resume_at), PrometheusLogger(context.run_id, stage.name)]
    metrics = MetricsLog(store, context.run.key(metrics_file(stage.name)), resume_at, watchers)
    beat = _heartbeat(context, stage.name, plan.steps)
    try:
        Trainer(stage.task, engine, plan, metrics, checkpoints, worker, start, beat).run()
    except NonFiniteLossError as error:
        left_out.add(error)
        raise


class SkippedSteps:
    """The steps of a stage that update nothing, because their loss or gradient was no number. Kept in the store."""

    def __init__(self, context: WorkerContext, stage: str) -> None:
        self._context, self._key = context, context.run.key(f"left-out-{stage}.json")

    def steps(self) -> frozenset[int]:
        store = self._context.run.store
        return frozenset(json.loads(store.get(self._key)) if store.exists(self._key) else [])

    def add(self, error: NonFiniteLossError) -> None:
        """Leave one more out, if the recipe allows it, and begin anew from the last checkpoint; every worker is here.

        Raises:
            Again: Ray Train restarts the workers.
        """
        steps = self.steps()
        self._context.meet()
        if len(steps) >= self._context.recipe.training.max_skipped_steps:
            return
        if self._context.rank == 0:
            print(f"{error}; step {error.step + 1} is left out", flush=True)
            self._context.run.store.put(self._key, json.dumps(sorted({*steps, error.step})).encode())
        self._context.meet()
        raise RestartWorkers(str(error)) from error


class RestartWorkers(Exception):
    """What was tried must be begun anew, which Ray Train does: it is no refusal."""


def metrics_file(stage: str) -> str:
    """Where a stage's metrics lie in its run: distillation's are the run's own."""
    return "metrics.jsonl" if stage == "distill" else f"metrics-{stage}.jsonl"


def _heartbeat(context: WorkerContext, stage: str, steps: int) -> Callable[[int], None]:
    """Tell the store now and then how far the run is; only the first worker does."""
    last = -_HEARTBEAT_SECONDS

    def beat(step: int) -> None:
        nonlocal last
        if context.rank == 0 and (time.monotonic() - last >= _HEARTBEAT_SECONDS or step == steps):
            context.run.tell(stage, step, steps)
            last = time.monotonic()

    return beat
