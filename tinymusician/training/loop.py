"""The training loop: steps, metrics, validation, checkpoints; under Ray Train and as plain PyTorch."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tinymusician.errors import NonFiniteLossError
from tinymusician.models.flops import peak_flops
from tinymusician.runtime.memory import peak_memory
from tinymusician.training.checkpoint import Checkpoint, CheckpointManager
from tinymusician.training.communication import communication_share
from tinymusician.training.engine import TrainEngine
from tinymusician.training.lr_schedule import learning_rate
from tinymusician.training.metrics import MetricsLog
from tinymusician.training.task import Task, to_device
from tinymusician.training.watchdog import Watchdog

_NOTICE_SECONDS = 2.0
"""Time between two questions whether a machine will be lost; machines have 30 s or more from then on."""


@dataclass(frozen=True)
class TrainerConfig:
    """The length and the intervals of a training.

    `monitor` is the held-out metric that picks the best checkpoint; lower is better. `codes_per_microbatch` and
    `flops_per_microbatch` are for the reported throughput and utilization, `seed` for random numbers inside the module
    (dropout). A step has `microbatches` equal microbatches (0: one per worker). `skipped` steps update nothing. Every
    `profile_seconds`, the first worker measures the communication of a step. A checkpoint is begun every
    `checkpoint_every` steps, and after `checkpoint_seconds` without one.
    """

    steps: int
    peak_rate: float
    warmup: int
    log_every: int
    validate_every: int
    checkpoint_every: int
    monitor: str
    codes_per_microbatch: int = 0
    flops_per_microbatch: float = 0.0
    seed: int = 0
    microbatches: int = 0
    skipped_steps: frozenset[int] = frozenset()
    profile_seconds: float = 600.0
    checkpoint_seconds: float = math.inf


@dataclass(frozen=True)
class RankInfo:
    """This process among `world` workers."""

    rank: int = 0
    world: int = 1

    def grad_accum_steps(self, microbatches: int) -> int:
        """The number of a step's microbatches per worker.

        It is equal on all ranks, since every backward pass is a collective.
        """
        return -(-microbatches // self.world)

    def microbatch_weights(self, microbatches: int) -> list[tuple[int, float]]:
        """This worker's microbatches of a step, each with its weight in the mean over the workers.

        Every `world`-th microbatch is this worker's. A worker with fewer than the others repeats one with weight 0.
        """
        weights = [(index, self.world / microbatches) for index in range(self.rank, microbatches, self.world)]
        return weights + [(self.rank % microbatches, 0.0)] * (self.grad_accum_steps(microbatches) - len(weights))


class Trainer:
    """One training of a task with an engine, from the checkpoint `start` or from the beginning."""

    def __init__(
        self,
        task: Task,
        engine: TrainEngine,
        config: TrainerConfig,
        metrics: MetricsLog | None,
        checkpoints: CheckpointManager,
        rank_info: RankInfo = RankInfo(),
        start: Checkpoint | None = None,
        heartbeat: Callable[[int], None] = lambda step: None,
        watchdog: Watchdog | None = None,
        has_notice: Callable[[], bool] | None = None,
    ) -> None:
        """`metrics` is the first worker's; `heartbeat` is called often, with the number of finished steps.

        `has_notice` tells that a machine will be lost, and all workers call it together; a checkpoint follows.
        """
        self.task, self.engine, self.config, self.rank_info, self.heartbeat = task, engine, config, rank_info, heartbeat
        self.metrics, self.checkpoints = metrics, checkpoints
        self.fresh, self.done = start is None, start.step if start is not None else 0
        self.microbatches = config.microbatches or rank_info.world
        self._profiled = self._saved = time.monotonic()
        self._has_notice, self._notice_steps = has_notice, 1
        self._phase = watchdog.phase if watchdog is not None else lambda name, step: contextlib.nullcontext()
        self._pause = watchdog.pause if watchdog is not None else contextlib.nullcontext

    def run(self) -> None:
        """Train to the configured number of steps. The first validation is of the untrained module, at step 0.

        Raises:
            NonFiniteLossError: a loss or gradient is not finite.
        """
        if self.fresh:
            self._checkpoint(self._validate())
        self.task.module.train()
        window = MetricWindow()
        while self.done < self.config.steps:
            if self.done in self.config.skipped_steps:
                self.done += 1
            else:
                with self._phase("step", self.done):
                    self._step_or_profile(window)
            validation_due = self._is_due(self.done, self.config.validate_every)
            with self._phase("notice", self.done):
                is_early = self._is_noticed() or self._is_late()
            checkpoint_due = validation_due or is_early or self._is_due(self.done, self.config.checkpoint_every)
            is_logged = is_early or self._is_logged(self.done)
            if window.steps and is_logged:
                with self._phase("metrics", self.done):
                    self._report(window)
            metrics = self._validate() if validation_due else {}
            if checkpoint_due:
                with self._phase("checkpoint", self.done):
                    self._checkpoint(metrics)
            if is_logged:
                window = MetricWindow()
        self._finish_checkpoints()

    def _step_or_profile(self, window: MetricWindow) -> None:
        """A step; now and then, the first of several workers measures its communication."""
        is_measured = self.metrics is not None and self.rank_info.world > 1
        if is_measured and time.monotonic() - self._profiled >= self.config.profile_seconds:
            window.communication_share = communication_share(partial(self._step, window), self.engine.device)
            self._profiled = time.monotonic()
        else:
            self._step(window)

    def _is_noticed(self) -> bool:
        """Whether a machine will be lost, which is asked every few seconds and answered once."""
        if self._has_notice is None or self.done % self._notice_steps or not self._has_notice():
            return False
        self._has_notice = None
        return True

    def _is_late(self) -> bool:
        """Whether the last checkpoint is older than it may be, and all workers have written theirs.

        The first worker's clock decides; all are asked together, every few seconds.
        """
        if self.done % self._notice_steps or not math.isfinite(self.config.checkpoint_seconds):
            return False
        is_due = time.monotonic() - self._saved > self.config.checkpoint_seconds
        if self.rank_info.world == 1:
            return is_due and not self.checkpoints.is_writing
        votes = torch.tensor([is_due and self.rank_info.rank == 0, self.checkpoints.is_writing], dtype=torch.float32)
        votes = votes.to(self.engine.device)
        dist.all_reduce(votes)
        due, writing = votes.tolist()
        return bool(due) and not writing

    def _is_due(self, step: int, every: int) -> bool:
        return step == self.config.steps or step % every == 0

    def _is_logged(self, step: int) -> bool:
        """Whether a row of metrics ends with a step: those before every validation and checkpoint do."""
        intervals = (self.config.log_every, self.config.validate_every, self.config.checkpoint_every)
        return any(self._is_due(step, interval) for interval in intervals)

    def _step(self, window: MetricWindow) -> None:
        rate = learning_rate(self.done, self.config.peak_rate, self.config.warmup, self.config.steps)
        *earlier, (last, weight) = self.rank_info.microbatch_weights(self.microbatches)
        losses, is_logged = [], self._is_logged(self.done + 1)
        for index, microbatch_weight in earlier:
            losses.append(self._microbatch_loss(index, microbatch_weight, window, is_logged))
            self.engine.backward(losses[-1])
        losses.append(self._microbatch_loss(last, weight, window, is_logged))
        norm = self.engine.step(losses[-1], rate)
        if not math.isfinite(norm):
            self._raise_non_finite([loss.item() for loss in losses], norm)
        self.done += 1
        window.close(norm, rate)
        self.heartbeat(self.done)

    def _microbatch_loss(self, index: int, weight: float, window: MetricWindow, is_logged: bool) -> Tensor:
        """The loss of one microbatch, times its weight."""
        torch.manual_seed(seed_of_step(self.config.seed, self.done, index))
        began = time.monotonic()
        with self._pause():
            batch = to_device(self.task.batch(self.done, index, self.microbatches), self.engine.device)
        window.data_seconds += time.monotonic() - began
        with self.engine.autocast():
            loss, scalars = self.task.loss(self.engine, batch, self.done, is_logged)
        window.add({"loss": loss.detach(), **scalars}, weight)
        return loss * weight

    def _raise_non_finite(self, losses: list[float], norm: float) -> None:
        """Report the rows of a microbatch whose loss or gradient is not finite; all workers call this.

        Raises:
            NonFiniteLossError: always.
        """
        weights = self.rank_info.microbatch_weights(self.microbatches)
        nonfinite = {index: loss for (index, _), loss in zip(weights, losses, strict=True) if not math.isfinite(loss)}
        every: list[dict[int, float]] = [nonfinite] * self.rank_info.world
        if self.rank_info.world > 1:
            dist.all_gather_object(every, nonfinite)
        by_microbatch = {index: loss for each in every for index, loss in each.items()}
        what = f"loss is {next(iter(by_microbatch.values()))}" if by_microbatch else f"gradient norm is {norm}"
        rows = [
            self.task.rows(self.done, index, self.microbatches)
            for index in sorted(by_microbatch) or range(self.microbatches)
        ]
        self.checkpoints.drain()
        steps = self.checkpoints.steps()
        advice = f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"
        error = NonFiniteLossError(
            f"{what} at step {self.done + 1}, on rows {', '.join(str(row) for row in np.concatenate(rows))}; {advice}; "
            "lower the learning rate, or leave such steps out with training.max_skipped_steps"
        )
        error.step = self.done
        raise error

    def _report(self, window: MetricWindow) -> None:
        row = window.means(self.rank_info.world)
        self._notice_steps = max(1, int(_NOTICE_SECONDS / row["step_seconds"]))
        if self.config.codes_per_microbatch:
            row["codes_per_second"] = self.config.codes_per_microbatch * self.microbatches / row["step_seconds"]
        flops = self.config.flops_per_microbatch * self.microbatches / self.rank_info.world
        if flops and (peak := device_peak_flops(self.engine.device)) is not None:
            row["mfu"] = flops / row["step_seconds"] / peak
        row["memory_gib"] = peak_memory_bytes(self.engine.device) / 2**30
        if self.metrics is not None:
            self.metrics.add({"step": self.done, **row})

    def _validate(self) -> dict[str, float]:
        module = self.task.module
        module.eval()
        with torch.no_grad(), self.engine.autocast(), self._phase("validation", self.done):
            metrics = self.task.validate(self.engine)
        module.train()
        if self.metrics is not None:
            self.metrics.add({"step": self.done, **{f"held_out/{name}": value for name, value in metrics.items()}})
        return metrics

    def _checkpoint(self, metrics: dict[str, float]) -> None:
        """Begin a checkpoint, with the metrics so far: training goes on while it is written."""
        if self.metrics is not None:
            self.metrics.flush()
        self.checkpoints.save(self.engine, self.done, metrics)
        self._saved = time.monotonic()

    def _finish_checkpoints(self) -> None:
        """Wait until the last checkpoint is valid; all workers call this."""
        with self._phase("checkpoint", self.done):
            self.checkpoints.drain()
            if self.rank_info.world > 1:
                dist.barrier()


def seed_of_step(seed: int, step: int, rank: int) -> int:
    """The seed of a worker's random numbers at a step, so that a resumed run repeats them."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


def device_peak_flops(device: torch.device) -> float | None:
    """The documented peak of a GPU, in operations per second; None for a CPU or a GPU that is not listed."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_memory_bytes(device: torch.device) -> int:
    """The peak memory of this process in bytes: of its GPU, or resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_memory()


class MetricWindow:
    """Sums over the steps between two log rows, on the loss's device. A window ends with a log row or a checkpoint.

    A scalar that only some steps, microbatches or workers have is averaged over those.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self._norm, self._rate, self.steps, self._began = 0.0, 0.0, 0, time.monotonic()
        self.data_seconds = 0.0
        self.communication_share: float | None = None

    def add(self, scalars: dict[str, Tensor], weight: float) -> None:
        """Add one microbatch, with its weight in the mean over the workers."""
        device = scalars["loss"].device
        for name, value in scalars.items():
            weighted = weight * value.detach().float().to(device)
            self._sums[name] = self._sums.get(name, torch.zeros((), device=device)) + weighted
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def close(self, norm: float, rate: float) -> None:
        """End a step."""
        self._norm, self._rate, self.steps = self._norm + norm, rate, self.steps + 1

    def means(self, world: int) -> dict[str, float]:
        """Means over steps and workers, with the gradient norm, the last learning rate and the time per step.

        `data_share` is the share of this worker's time until batches are there, with the teacher's signals.
        """
        seconds = time.monotonic() - self._began
        names = self._names_of_all(world)
        device = next(iter(self._sums.values())).device
        sums = [self._sums.get(name, torch.zeros((), device=device)) for name in names]
        weights = [self._weights.get(name, 0.0) for name in names]
        totals = torch.stack([torch.stack(sums), torch.tensor(weights, device=device)])
        durations = torch.tensor([[seconds / self.steps], [1.0]], device=device)
        totals = torch.cat([totals, durations], dim=1)
        if world > 1:
            dist.all_reduce(totals)
        row = {
            name: total / weight
            for name, total, weight in zip([*names, "step_seconds"], *totals.tolist(), strict=True)
            if weight
        }
        row |= {"gradient_norm": self._norm / self.steps, "learning_rate": self._rate}
        row["data_share"] = self.data_seconds / seconds
        if self.communication_share is not None:
            row["communication_share"] = self.communication_share
        return row

    def _names_of_all(self, world: int) -> list[str]:
        """The scalars that any worker has: all must reduce the same ones."""
        everybody = [sorted(self._sums)] * world
        if world > 1:
            dist.all_gather_object(everybody, sorted(self._sums))
        return sorted(set().union(*everybody))
