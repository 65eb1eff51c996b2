"""The overhead of Ray Train and DeepSpeed over a plain PyTorch loop with the same steps and data.

    python benchmarks/distill.py [--steps 12] [--rounds 3]

overhead_vs_bare    seconds a step under Ray Train and DeepSpeed, over the bare loop's, less one
workers2_speedup    codes a second of two workers, each pinned to a core, over one worker on one core
cached_over_online  seconds a step with the teacher's logits from shards, over those with the teacher in the worker
actors_speedup      codes a second with the teacher on an actor, over those with the teacher in the worker: a core each
teacher_share       the teacher's share of a step with the teacher in the worker; at 0.5 overlap can give 2 at most
loss_peak_logits    peak memory of objective and gradient beyond its inputs, in units of one logits tensor

Every process computes with one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tinymusician.data.tokens import TokenDataset
from tinymusician.distill.signals import SignalSource
from tinymusician.distill.task import DistillTask
from tinymusician.json_types import JsonObject
from tinymusician.models.protocols import Musicgen
from tinymusician.training.engine import TrainEngine

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import report
from jobs.launch.ray_environment import QUIET_ENVIRONMENT
from jobs.worker.context import WorkerContext
from tinymusician.artifacts.store import LocalStore

BATCH, FRAMES, ROWS = 4, 250, 16


def build_task(
    model_name: str, source_of: Callable[[Musicgen, TokenDataset], SignalSource] | None = None
) -> DistillTask:
    """The band's distillation task on random codes: what a step does, without sampling.

    `source_of` takes teacher and tokens; by itself the teacher is in this process. A student of two layers, forward and
    back, with its objective costs about as much as its teacher's eight forward.
    """
    import numpy as np
    import torch

    from tinymusician.data.tokens import TokenDataset
    from tinymusician.distill.objective import mixture
    from tinymusician.distill.schedules import TemperatureSchedule
    from tinymusician.distill.signals import OnlineTeacher, SignalSet
    from tinymusician.distill.task import DistillTask, ObjectiveConfig
    from tinymusician.models.musicgen import load_musicgen
    from tinymusician.models.prune_layers import prune_layers

    torch.manual_seed(0)
    teacher = load_musicgen(model_name)
    rng = np.random.default_rng(0)
    vocabulary, num_codebooks = teacher.config.decoder.vocab_size, teacher.config.decoder.num_codebooks
    codes = rng.integers(0, vocabulary, (ROWS, num_codebooks, FRAMES)).astype(np.int16)
    ids = rng.integers(3, 40, (ROWS, 8))
    tokens = TokenDataset(codes, ids, np.ones_like(ids))
    source = OnlineTeacher(teacher, tokens, "conditional", 3.0, torch.float32)
    student = prune_layers(teacher, [0, teacher.config.decoder.num_hidden_layers - 1])
    source = source_of(teacher, tokens) if source_of else source
    return DistillTask(
        student,
        SignalSet(source, ROWS),
        SignalSet(source, ROWS),
        ObjectiveConfig(lambda step: mixture("stage_mixed", 1.0), TemperatureSchedule(1.0, 1.0, "sequence", 1)),
        batch_size=BATCH,
        seed=0,
    )


def timed_steps(
    task: DistillTask, engine: TrainEngine, steps: int, rank: int, world: int
) -> tuple[list[float], list[float]]:
    """Seconds and losses of each step; the first two warm up and are not counted."""
    seconds, losses = [], []
    for step in range(steps):
        began = time.perf_counter()
        with engine.autocast():
            loss, _ = task.loss(engine, task.batch(step, rank, world), step)
        engine.step(loss, 1e-3)
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - began)
    return seconds[2:], losses


def bare(model_name: str, steps: int) -> tuple[list[float], list[float]]:
    """A plain PyTorch loop."""
    import torch

    from tinymusician.training.engine import AdamConfig
    from tinymusician.training.torch_engine import TorchEngine

    torch.set_num_threads(1)
    task = build_task(model_name)
    return timed_steps(task, TorchEngine(task.module, AdamConfig()), steps, 0, 1)


def on_ray(config: JsonObject) -> None:
    """The same steps inside a Ray Train worker, by DeepSpeed."""
    import json

    os.environ["DS_ACCELERATOR"] = "cpu"
    import ray.train
    import torch

    from tinymusician.training.deepspeed_engine import DeepSpeedEngine
    from tinymusician.training.engine import AdamConfig

    torch.set_num_threads(1)
    place = ray.train.get_context()
    rank, world = place.get_world_rank(), place.get_world_size()
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    context = WorkerContext(config["store"], "bench", rank, world, "cpu")
    task = build_task(config["model"], partial(SOURCES[config["source"]], context))
    result = timed_steps(task, DeepSpeedEngine(task.module, AdamConfig(), BATCH, 0), config["steps"], rank, world)
    if rank == 0:
        Path(config["out"]).write_text(json.dumps(result))


def from_worker(_: WorkerContext, teacher: Musicgen, tokens: TokenDataset) -> SignalSource:
    """The teacher in the worker."""
    import torch

    from tinymusician.distill.signals import OnlineTeacher

    return OnlineTeacher(teacher, tokens, "conditional", 3.0, torch.float32)


def from_actor(context: WorkerContext, teacher: Musicgen, tokens: TokenDataset) -> SignalSource:
    """The teacher on an actor, on another core."""
    from jobs.distill.teacher_actors import TeacherClient
    from tinymusician.distill.signals import PrefetchingSource

    return PrefetchingSource(
        TeacherClient(context, tokens, "conditional", teacher.config.decoder.vocab_size, 1).request, 2
    )


def from_shards(context: WorkerContext, teacher: Musicgen, tokens: TokenDataset) -> SignalSource:
    """The teacher's logits in a local store, made here first."""
    from tinymusician.data.shards import ShardCache
    from tinymusician.distill.cached import CachedTeacher, shard_count, signal_shard
    from tinymusician.distill.signals import PrefetchingSource

    shards = ShardCache(context.run.store, "signals", {}, shard_count(ROWS))
    make = partial(signal_shard, from_worker(context, teacher, tokens), rows=ROWS, batch_size=BATCH)
    for index in shards.missing():
        shards.write(index, make(index))
    folder = Path(context.store_url.removeprefix("file://")) / "cache"
    reader = CachedTeacher(shards, tokens, "conditional", teacher.config.decoder.vocab_size, folder, "cpu", make)
    return PrefetchingSource(reader.request, 2)


SOURCES: dict[str, Callable[[WorkerContext, Musicgen, TokenDataset], SignalSource]] = {
    "online": from_worker,
    "actors": from_actor,
    "cached": from_shards,
}


def ray_steps(
    model_name: str, steps: int, workers: int, store: str, source: str = "online"
) -> tuple[list[float], list[float]]:
    """Run `on_ray` on a Ray of this benchmark's own."""
    import json

    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "result.json")
        TorchTrainer(
            on_ray,
            train_loop_config={"model": model_name, "steps": steps, "out": out, "store": store, "source": source},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="bench", storage_path=folder),
        ).fit()
        seconds, losses = json.loads(Path(out).read_text())
    return seconds, losses


def teachers(store: LocalStore, model_name: str) -> Any:
    """A teacher's actor of one core, without sequences to sample."""
    from jobs.distill.teacher_actors import TeacherPool
    from tinymusician.artifacts.run_state import RunRecord, now
    from tinymusician.artifacts.runs import RunStore
    from tinymusician.recipe import load_recipe

    recipe = load_recipe("band", (f"teacher.model={model_name}", "signals.source=actors"))
    run = RunStore(store, "bench")
    content = recipe.model_dump(mode="json")
    facts: JsonObject = {"created": now(), "versions": {}, "git": {}, "seeds": {}, "cluster": "", "submission": ""}
    run.write_record(RunRecord(id="bench", kind="distill", recipe=content, workers=1, **facts))
    return contextlib.closing(TeacherPool(run, False, 1))


def teacher_share(model_name: str) -> float:
    """How much of a bare step is the teacher's."""
    import torch

    from tinymusician.training.engine import AdamConfig
    from tinymusician.training.torch_engine import TorchEngine

    torch.set_num_threads(1)
    task = build_task(model_name)
    engine = TorchEngine(task.module, AdamConfig())
    teacher_seconds, step_seconds = [], []
    for step in range(6):
        began = time.perf_counter()
        batch = task.batch(step, 0, 1)
        teacher_seconds.append(time.perf_counter() - began)
        engine.step(task.loss(engine, batch, step)[0], 1e-3)
        step_seconds.append(time.perf_counter() - began)
    return statistics.median(teacher_seconds[2:]) / statistics.median(step_seconds[2:])


def loss_peak() -> float:
    """Peak resident memory that the objective adds on [8, 4, 500, 2048] float32, in a process of its own."""
    ended = subprocess.run([sys.executable, __file__, "--peak"], capture_output=True, text=True, check=True)
    return float(ended.stdout.split()[-1])


def measure_peak() -> float:
    """The growth of this process's high-water mark over value and gradient, over one logits tensor."""
    import torch

    from tinymusician.distill.objective import LossWeights, distillation_loss

    shape = (8, 4, 500, 2048)
    teacher, student = torch.randn(shape), torch.randn(shape, requires_grad=True)
    mask = torch.ones(shape[:-1], dtype=torch.bool)
    small = torch.randn(1, 1, 8, 2048, requires_grad=True)
    distillation_loss(small.detach(), small, mask[:1, :1, :8], LossWeights(0.5, 0.5, 0.5, 0.5, 0.1)).sum().backward()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark, also the one inherited from the parent
    distillation_loss(teacher, student, mask, LossWeights(0.5, 0.5, 0.5, 0.5, 0.1), 1.5).sum().backward()
    return (resident("VmHWM") - before) / (teacher.numel() * 4)


def resident(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _figures(times: dict[str, list[float]], gap: float, model: str) -> dict[str, float]:
    step = {name: statistics.median(seconds) for name, seconds in times.items()}
    return {
        "overhead_vs_bare": step["online"] / step["bare"] - 1,
        "workers2_speedup": 2 * step["online"] / step["two"],
        "cached_over_online": step["cached"] / step["online"],
        "actors_speedup": step["online"] / step["actors"],
        "teacher_share": teacher_share(model),
        "loss_peak_logits": loss_peak(),
        "largest_loss_gap": gap,
        "bare_step_seconds": step["bare"],
    }


def _parse_options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=12)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--model", default="band-large")
    options.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    return options.parse_args()


def main() -> None:
    """Measure in alternation, so that the machine's load affects both sides."""
    chosen = _parse_options()
    if chosen.peak:
        print(measure_peak())
        return
    import ray

    os.environ.update(QUIET_ENVIRONMENT)  # as a local Ray of tmctl's is
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"RAY_TRAIN_V2_ENABLED": "1", "PYTHONPATH": str(Path(__file__).parents[1])}},
    )
    times: dict[str, list[float]] = {name: [] for name in ("bare", "online", "cached", "actors", "two")}
    gap = 0.0
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder))
        for _ in range(chosen.rounds):
            seconds, losses = bare(chosen.model, chosen.steps)
            times["bare"] += seconds
            for source in SOURCES:
                with teachers(store, chosen.model) if source == "actors" else contextlib.nullcontext():
                    seconds, same = ray_steps(chosen.model, chosen.steps, 1, store.url, source)
                times[source] += seconds
                gap = max(gap, *(abs(a - b) for a, b in zip(losses, same, strict=True)))
            times["two"] += ray_steps(chosen.model, chosen.steps, 2, store.url)[0]
    figures = _figures(times, gap, chosen.model)
    report(
        "distill",
        figures,
        {"model": chosen.model, "steps": chosen.steps, "rounds": chosen.rounds, "batch": BATCH, "frames": FRAMES},
    )


if __name__ == "__main__":
    main()
