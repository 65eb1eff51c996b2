"""What the cluster's machinery costs: Ray Train and DeepSpeed against a bare PyTorch loop on the same steps and data.

    python benchmarks/distill.py [--steps 12] [--rounds 3]

overhead_vs_bare    seconds a step under Ray Train and DeepSpeed, over the bare loop's, less one
workers2_speedup    codes a second of two workers with one thread each, over one worker with one thread
loss_peak_logits    peak memory of objective and gradient beyond its inputs, in units of one logits tensor
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import report

BATCH, FRAMES, ROWS = 4, 100, 16


def build_task(model_name: str) -> Any:
    """The band's distillation task on random codes: what a step does, without sampling."""
    import numpy as np
    import torch

    from tinymusician.data.tokens import TokenSet
    from tinymusician.distill.objective import mixture
    from tinymusician.distill.signals import OnlineTeacher
    from tinymusician.distill.task import DistillTask, Softening
    from tinymusician.models.musicgen import load_musicgen
    from tinymusician.models.student import cut_student

    torch.manual_seed(0)
    teacher = load_musicgen(model_name)
    rng = np.random.default_rng(0)
    vocabulary, books = teacher.config.decoder.vocab_size, teacher.config.decoder.num_codebooks
    codes = rng.integers(0, vocabulary, (ROWS, books, FRAMES)).astype(np.int16)
    ids = rng.integers(3, 40, (ROWS, 8))
    tokens = TokenSet(codes, ids, np.ones_like(ids))
    source = OnlineTeacher(teacher, tokens, "conditional", 3.0, torch.float32)
    soft = Softening(1.0, 1.0, "sequence", 1)
    student = cut_student(teacher, [0, teacher.config.decoder.num_hidden_layers - 1])
    return DistillTask(
        student=student,
        train=source,
        train_rows=ROWS,
        held_out=source,
        held_out_rows=ROWS,
        mixture_at=lambda step: mixture("stage_mixed", 1.0),
        softening=soft,
        batch_size=BATCH,
        seed=0,
    )


def timed_steps(task: Any, engine: Any, steps: int, rank: int, world: int) -> tuple[list[float], list[float]]:
    """Seconds and losses of each step; the first two warm up and are not counted."""
    seconds, losses = [], []
    for step in range(steps):
        began = time.perf_counter()
        with engine.computing():
            loss, _ = task.loss(engine, task.batch(step, rank, world), step)
        engine.step(loss, 1e-3)
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - began)
    return seconds[2:], losses


def bare(model_name: str, steps: int, threads: int) -> tuple[list[float], list[float]]:
    """A plain PyTorch loop."""
    import torch

    from tinymusician.training.engine import AdamSettings, TorchEngine

    torch.set_num_threads(threads)
    task = build_task(model_name)
    return timed_steps(task, TorchEngine(task.module, AdamSettings()), steps, 0, 1)


def on_ray(config: dict[str, Any]) -> None:
    """The same steps inside a Ray Train worker, by DeepSpeed."""
    import json
    import os

    os.environ["DS_ACCELERATOR"] = "cpu"
    import ray.train
    import torch

    from tinymusician.training.deepspeed_engine import DeepSpeedEngine
    from tinymusician.training.engine import AdamSettings

    torch.set_num_threads(config["threads"])
    place = ray.train.get_context()
    rank, world = place.get_world_rank(), place.get_world_size()
    task = build_task(config["model"])
    result = timed_steps(task, DeepSpeedEngine(task.module, AdamSettings(), BATCH, 0), config["steps"], rank, world)
    if rank == 0:
        Path(config["out"]).write_text(json.dumps(result))


def ray_steps(model_name: str, steps: int, workers: int, threads: int) -> tuple[list[float], list[float]]:
    """Run `on_ray` on a Ray of this benchmark's own."""
    import json

    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "result.json")
        TorchTrainer(
            on_ray,
            train_loop_config={"model": model_name, "steps": steps, "threads": threads, "out": out},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="bench", storage_path=folder),
        ).fit()
        seconds, losses = json.loads(Path(out).read_text())
    return seconds, losses


def loss_peak() -> float:
    """Peak resident memory that the objective adds on [8, 4, 500, 2048] float32, in a process of its own."""
    ended = subprocess.run([sys.executable, __file__, "--peak"], capture_output=True, text=True, check=True)
    return float(ended.stdout.split()[-1])


def measure_peak() -> float:
    """The growth of this process's high-water mark over value and gradient, over one logits tensor."""
    import torch

    from tinymusician.distill.objective import Mixture, distillation_loss

    shape = (8, 4, 500, 2048)
    teacher, student = torch.randn(shape), torch.randn(shape, requires_grad=True)
    mask = torch.ones(shape[:-1], dtype=torch.bool)
    small = torch.randn(1, 1, 8, 2048, requires_grad=True)
    distillation_loss(small.detach(), small, mask[:1, :1, :8], Mixture(0.5, 0.5, 0.5, 0.5, 0.1)).sum().backward()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark, also the one inherited from the parent
    distillation_loss(teacher, student, mask, Mixture(0.5, 0.5, 0.5, 0.5, 0.1), 1.5).sum().backward()
    return (resident("VmHWM") - before) / (teacher.numel() * 4)


def resident(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    """Measure in alternation, so that the machine's moods fall on both sides."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=12)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--model", default="band-large")
    options.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.peak:
        print(measure_peak())
        return
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"RAY_TRAIN_V2_ENABLED": "1", "PYTHONPATH": str(Path(__file__).parents[1])}},
    )
    plain: list[float] = []
    railed: list[float] = []
    gap = 0.0
    for _ in range(chosen.rounds):
        seconds, losses = bare(chosen.model, chosen.steps, 1)
        plain += seconds
        seconds, same = ray_steps(chosen.model, chosen.steps, 1, 1)
        railed += seconds
        gap = max(gap, *(abs(a - b) for a, b in zip(losses, same, strict=True)))
    both, _ = ray_steps(chosen.model, chosen.steps, 2, 1)
    figures = {
        "overhead_vs_bare": statistics.median(railed) / statistics.median(plain) - 1,
        "workers2_speedup": 2 * statistics.median(railed) / statistics.median(both),
        "loss_peak_logits": loss_peak(),
        "largest_loss_gap": gap,
        "bare_seconds_a_step": statistics.median(plain),
    }
    report(
        "distill",
        figures,
        {"model": chosen.model, "steps": chosen.steps, "rounds": chosen.rounds, "batch": BATCH, "frames": FRAMES},
    )


if __name__ == "__main__":
    main()
