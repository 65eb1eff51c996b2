"""The training loop: steps, metrics, validation, checkpoints. It runs the same under Ray Train and as plain PyTorch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tinymusician.errors import Diverged
from tinymusician.training.checkpoint import Checkpoint, Checkpoints
from tinymusician.training.engine import Engine
from tinymusician.training.metrics import MetricsLog
from tinymusician.training.rate import learning_rate
from tinymusician.training.task import Task, to_device


@dataclass(frozen=True)
class Plan:
    """How long and how often.

    `judge` names the held-out figure that picks the best checkpoint, lower being better. `codes_a_step` is what one
    worker's step takes in, for the throughput that is reported. `seed` is for what a module draws itself (dropout).
    """

    steps: int
    peak_rate: float
    warmup: int
    log_every: int
    validate_every: int
    checkpoint_every: int
    judge: str
    codes_a_step: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Worker:
    """This process among `world` workers."""

    rank: int = 0
    world: int = 1


class Loop:
    """One run of a task through an engine, from the checkpoint `start` or from the beginning."""

    def __init__(
        self,
        task: Task,
        engine: Engine,
        plan: Plan,
        metrics: MetricsLog,
        checkpoints: Checkpoints,
        worker: Worker = Worker(),
        start: Checkpoint | None = None,
        beat: Callable[[int], None] = lambda step: None,
    ) -> None:
        """`beat` is called with the number of finished steps, often: it tells the world that the run lives."""
        self.task, self.engine, self.plan, self.worker, self.beat = task, engine, plan, worker, beat
        self.metrics, self.checkpoints = metrics, checkpoints
        self.fresh, self.done = start is None, start.step if start is not None else 0

    def run(self) -> None:
        """Train to the plan's end. The first validation is of the untrained module, at step 0."""
        if self.fresh:
            self._checkpoint(self._validate())
        self.task.module.train()
        window = Window()
        while self.done < self.plan.steps:
            self._step(window)
            judged = self._is_time(self.plan.validate_every)
            kept = judged or self._is_time(self.plan.checkpoint_every)
            if kept or self._is_time(self.plan.log_every):
                self._report(window)
                window = Window()
            figures = self._validate() if judged else {}
            if kept:
                self._checkpoint(figures)

    def _is_time(self, every: int) -> bool:
        return self.done == self.plan.steps or self.done % every == 0

    def _step(self, window: Window) -> None:
        torch.manual_seed(seed_of_step(self.plan.seed, self.done, self.worker.rank))
        batch = to_device(self.task.batch(self.done, self.worker.rank, self.worker.world), self.engine.device)
        rate = learning_rate(self.done, self.plan.peak_rate, self.plan.warmup, self.plan.steps)
        with self.engine.computing():
            loss, scalars = self.task.loss(self.engine, batch, self.done)
        norm = self.engine.step(loss, rate)
        self.done += 1
        window.add({"loss": loss.detach(), **scalars}, norm, rate)
        self.beat(self.done)

    def _report(self, window: Window) -> None:
        row = window.means(self.worker.world)
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(row[name]):
                shown = name.replace("_", " ")
                raise Diverged(f"{shown} is {row[name]} at step {self.done}: lower the learning rate")
        if self.plan.codes_a_step:
            row["codes_a_second"] = self.plan.codes_a_step * self.worker.world / row["seconds_a_step"]
        if self.worker.rank == 0:
            self.metrics.add({"step": self.done, **row})

    def _validate(self) -> dict[str, float]:
        module = self.task.module
        module.eval()
        with torch.no_grad(), self.engine.computing():
            figures = self.task.validate(self.engine)
        module.train()
        if self.worker.rank == 0:
            self.metrics.add({"step": self.done, **{f"held_out/{name}": value for name, value in figures.items()}})
        return figures

    def _checkpoint(self, figures: dict[str, float]) -> None:
        """Every worker contributes to the state; the first one writes it, with the metrics up to here."""
        state = self.engine.state()
        if self.worker.rank == 0:
            self.metrics.flush()
            self.checkpoints.save(Checkpoint(self.done, state, figures))
        if self.worker.world > 1:
            dist.barrier()


def seed_of_step(seed: int, step: int, rank: int) -> int:
    """What a worker's random numbers at a step follow from, so that a resumed run draws the same ones."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


class Window:
    """Sums over the steps between two reports, on the loss's device. A window ends with a report or a checkpoint."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._norm, self._rate, self._steps, self._began = 0.0, 0.0, 0, time.monotonic()

    def add(self, scalars: dict[str, Tensor], norm: float, rate: float) -> None:
        """Take in one step."""
        device = scalars["loss"].device
        for name, value in scalars.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=device)) + value.detach().float().to(device)
        self._norm, self._rate, self._steps = self._norm + norm, rate, self._steps + 1

    def means(self, world: int) -> dict[str, float]:
        """Means over steps and workers, with the gradient norm, the last learning rate and the time a step took."""
        names = sorted(self._sums)
        values = torch.stack([self._sums[name] for name in names]) / self._steps
        if world > 1:
            dist.all_reduce(values)
            values = values / world
        row = dict(zip(names, values.tolist(), strict=True))
        seconds = (time.monotonic() - self._began) / self._steps
        return {
            **row,
            "gradient_norm": self._norm / self._steps,
            "learning_rate": self._rate,
            "seconds_a_step": seconds,
        }
