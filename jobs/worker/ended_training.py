"""What a stage's training achieved, for the stages after it: as its workers have said, whatever lies in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.worker.context import WorkerContext
from tinymusician.errors import RunError
from tinymusician.training.history import TrainingHistory

if TYPE_CHECKING:
    from tinymusician.training.checkpoint import Checkpoint

_KIND = "training"


def write_history(context: WorkerContext, stage: str, history: TrainingHistory) -> None:
    """Record that a stage's training has ended, and its held-out metrics."""
    context.run.write_measurement(_KIND, stage, history)


def has_ended(context: WorkerContext, stage: str) -> bool:
    """Whether a stage's training has ended."""
    return context.run.measurement(_KIND, stage, TrainingHistory) is not None


def history_of(context: WorkerContext, stage: str) -> TrainingHistory:
    """The held-out metrics of a stage before training, and at its best checkpoint.

    Raises:
        RunError: it has not ended.
    """
    history = context.run.measurement(_KIND, stage, TrainingHistory)
    if history is None:
        raise RunError(f"run {context.run_id}: stage {stage} has not ended")
    return history


def best_checkpoint(context: WorkerContext, stage: str) -> Checkpoint:
    """A stage's best checkpoint.

    Raises:
        RunError: the stage has not ended, or none of its checkpoints has finite held-out metrics.
        NotFoundError: the checkpoint is gone.
    """
    from tinymusician.training.checkpoint import CheckpointManager

    if (step := history_of(context, stage).best_step) is None:
        raise RunError(f"run {context.run_id}: stage {stage} has no checkpoint with finite held-out metrics")
    return CheckpointManager(context.run.store, context.run.checkpoints_key(stage), "").load(step)
