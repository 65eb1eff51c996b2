"""Runs a training stage on a worker: task, optimizer, checkpoints, metrics, and skipped steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from jobs.worker import mlflow
from jobs.worker.context import WorkerContext
from jobs.worker.ended_training import write_history
from jobs.worker.ray_train import RestartWorkers
from tinymusician.artifacts.background import BackgroundWriter
from tinymusician.errors import NonFiniteLossError
from tinymusician.recipe import TrainingConfig

if TYPE_CHECKING:
    from jobs.worker.prometheus import PrometheusLogger
    from tinymusician.training.engine import AdamConfig
    from tinymusician.training.history import TrainingHistory
    from tinymusician.training.loop import TrainerConfig
    from tinymusician.training.metrics import MetricsLog
    from tinymusician.training.task import Task

_HEARTBEAT_SECONDS = 2.0


@dataclass(frozen=True)
class TrainingStage:
    """A training stage. `name` is also its folder in the run; `batch_size` is that of a microbatch."""

    name: str
    task: Task
    config: TrainerConfig
    optimizer: AdamConfig
    batch_size: int
    zero_stage: Literal[0, 1, 2, 3]
    precision: Literal["float32", "bfloat16"]


def trainer_config(
    training: TrainingConfig,
    steps: int,
    rate: float,
    monitor: str,
    codes_per_microbatch: int = 0,
    flops_per_microbatch: float = 0.0,
) -> TrainerConfig:
    """A stage's trainer configuration, with the intervals of the recipe's `training` section."""
    from tinymusician.training.loop import TrainerConfig

    return TrainerConfig(
        steps=steps,
        peak_rate=rate,
        warmup=min(training.warmup_steps, steps - 1),
        log_every=training.log_every,
        validate_every=training.validate_every,
        checkpoint_every=training.checkpoint_every,
        monitor=monitor,
        codes_per_microbatch=codes_per_microbatch,
        flops_per_microbatch=flops_per_microbatch,
        seed=training.seed,
        microbatches=training.microbatches,
        checkpoint_seconds=60 * training.checkpoint_minutes,
    )


def train(context: WorkerContext, stage: TrainingStage) -> None:
    """Run a stage to its end, from its latest checkpoint in the store if there is one.

    Raises:
        NonFiniteLossError: a loss or gradient is not finite.
        RestartWorkers: the step with such a loss is skipped, from the last checkpoint on.
    """
    from jobs.worker.prometheus import PrometheusLogger
    from jobs.worker.stalls import start_watchdog, worker_nodes
    from tinymusician.training.checkpoint import CheckpointManager
    from tinymusician.training.deepspeed_engine import DeepSpeedEngine
    from tinymusician.training.loop import RankInfo, Trainer

    run = context.run
    config = replace(stage.config, skipped_steps=run.skipped_steps(stage.name))
    key = run.checkpoints_key(stage.name)
    checkpoints = CheckpointManager(run.store, key, config.monitor, context.rank, context.world)
    start = checkpoints.latest()
    if context.rank == 0:
        run.take_notice()
        begun = "from the beginning" if start is None else f"from step {start.step}"
        print(f"{stage.name}: {begun}, {config.steps} steps", flush=True)
    rank, state = RankInfo(context.rank, context.world), start.state if start is not None else None
    settings = (stage.optimizer, stage.batch_size, stage.zero_stage, stage.precision)
    engine = DeepSpeedEngine(stage.task.module, *settings, state, rank.grad_accum_steps(config.microbatches))
    writer, prometheus = BackgroundWriter(), PrometheusLogger(run.id, stage.name) if context.rank == 0 else None
    metrics = _open_metrics(context, stage.name, start.step if start is not None else -1, writer, prometheus)
    heartbeat = _heartbeat(context, stage.name, config.steps, writer, prometheus)
    watchdog = start_watchdog(context, worker_nodes(context))
    try:
        options = (heartbeat, watchdog, partial(_has_notice, context))
        Trainer(stage.task, engine, config, metrics, checkpoints, rank, start, *options).run()
        _record_end(context, stage.name, checkpoints.history)
    except NonFiniteLossError as error:
        _skip_step(context, stage.name, error)
        raise
    finally:
        watchdog.close()
        if metrics is not None:
            metrics.close()


def _record_end(context: WorkerContext, stage: str, history: TrainingHistory) -> None:
    """Record that a stage has ended, before any worker goes on. All workers call this."""
    if context.rank == 0:
        write_history(context, stage, history)
    context.barrier()


def _open_metrics(
    context: WorkerContext, stage: str, resume_at: int, writer: BackgroundWriter, prometheus: PrometheusLogger | None
) -> MetricsLog | None:
    """The stage's metrics, which the first worker writes."""
    from jobs.worker.tensorboard import TensorBoardLogger
    from tinymusician.training.metrics import MetricSink, MetricsLog

    run = context.run
    if prometheus is None:
        return None
    sinks: list[MetricSink] = [TensorBoardLogger(run, stage, resume_at), prometheus]
    if mlflow.is_used():
        sinks.append(mlflow.MlflowLogger(run, stage))
    return MetricsLog(run.store, run.metrics_key(stage), resume_at, sinks, writer)


def _has_notice(context: WorkerContext) -> bool:
    """Whether a machine of the run will be taken away: Ray was told to drain it. All workers must call this."""
    from ray.train import get_preemption_info

    if (notice := get_preemption_info()) is None:
        return False
    if context.rank == 0:
        ranks = sorted(rank for ranks in notice.preempted_node_to_ranks.values() for rank in ranks)
        context.run.write_notice()
        print(f"workers {', '.join(map(str, ranks))} will lose their machines: a checkpoint is written", flush=True)
    return True


def _skip_step(context: WorkerContext, stage: str, error: NonFiniteLossError) -> None:
    """Skip one more step if the recipe allows it, and restart from the last checkpoint. All workers call this.

    Raises:
        RestartWorkers: Ray Train restarts the workers.
    """
    steps = context.run.skipped_steps(stage)
    context.barrier()
    if len(steps) >= context.recipe.training.max_skipped_steps:
        return
    if context.rank == 0:
        print(f"{error}; step {error.step + 1} is skipped", flush=True)
        context.run.write_skipped_steps(stage, {*steps, error.step})
    context.barrier()
    raise RestartWorkers(str(error)) from error


def _heartbeat(
    context: WorkerContext, stage: str, steps: int, writer: BackgroundWriter, prometheus: PrometheusLogger | None
) -> Callable[[int], None]:
    """A callback that reports progress, to the store every few seconds; only the first worker does."""
    last = -_HEARTBEAT_SECONDS

    def beat(step: int) -> None:
        nonlocal last
        if prometheus is not None:
            prometheus.on_step(step)
        if context.rank == 0 and (time.monotonic() - last >= _HEARTBEAT_SECONDS or step == steps):
            writer.submit("progress", partial(context.run.report_progress, stage, step, steps))
            last = time.monotonic()

    return beat
