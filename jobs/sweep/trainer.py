"""Runs the trainings of a sweep on one actor, from cached teacher signals, and caches the students in the store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from jobs.distill.finalize import MONITOR
from jobs.distill.models import TeacherStudent, load_models, new_student
from jobs.distill.objective import objective_config
from jobs.distill.teacher import cached_signals, online_signals, open_sequences, signal_shard_cache
from jobs.sweep.trials import SweepTrial
from jobs.worker.context import WorkerContext
from jobs.worker.stage import trainer_config
from tinymusician.data.shards import ShardCache
from tinymusician.data.splits import Split
from tinymusician.data.tokens import TokenDataset
from tinymusician.distill.signals import SignalSet, SignalSource, TeacherSignals
from tinymusician.distill.tracked_task import TrackedDistillTask
from tinymusician.errors import NonFiniteLossError, NotFoundError
from tinymusician.evaluate.sweep_results import Divergence, TrialCurves
from tinymusician.models.prune_layers import weights_digest
from tinymusician.training.checkpoint import CheckpointManager
from tinymusician.training.engine import AdamConfig, full_state
from tinymusician.training.loop import Trainer
from tinymusician.training.metrics import MetricsLog, read_metrics
from tinymusician.training.torch_engine import TorchEngine

Weights = dict[str, Tensor]


class TrialTrainer:
    """Trains the students of a sweep. Teacher, signals and held-out data are loaded once."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = replace(context, rank=0, world=1)
        self._recipe, self._store = context.recipe, context.run.store

    @cached_property
    def models(self) -> TeacherStudent:
        """Teacher and student of the sweep's recipe."""
        return load_models(self._recipe)

    def train(self, trial: SweepTrial) -> None:
        """Train a student, unless the store has it; then delete the training's checkpoints."""
        cache, run, stage = self._cache(trial), self._context.run, f"trials/{trial.key}"
        if not cache.contains(0):
            weights, curves = self._train(trial, CheckpointManager(self._store, run.checkpoints_key(stage), MONITOR))
            arrays = {name: value.numpy() for name, value in weights.items()}
            cache.write(0, arrays, curves.model_dump(mode="json"))
        run.delete_checkpoints(stage)

    def curves(self, trial: SweepTrial) -> TrialCurves:
        """The metrics of a training.

        Raises:
            NotFoundError: it was not run.
        """
        return TrialCurves.model_validate(self._trained(trial).details(0))

    def weights(self, trial: SweepTrial) -> Weights:
        """The student's weights after its last step.

        Raises:
            NotFoundError: it was not trained.
        """
        return {name: torch.from_numpy(value) for name, value in self._trained(trial).read(0).items()}

    def _trained(self, trial: SweepTrial) -> ShardCache:
        cache = self._cache(trial)
        if not cache.contains(0):
            what = f"{trial.grid}, {trial.value}, seed {trial.seed}"
            raise NotFoundError(f"training of {what}: not in {self._store.url}; resume the sweep to run it")
        return cache

    def _cache(self, trial: SweepTrial) -> ShardCache:
        return ShardCache(self._store, "trials", {**trial.facts, **self._inputs}, 1)

    @cached_property
    def _inputs(self) -> dict[str, object]:
        """What every training depends on beside its recipe: signals, initial weights, device and precision."""
        shards = signal_shard_cache(self._context, self.models, self._tokens("train"))
        return {
            "signals": shards.fingerprint,
            "initial_weights": weights_digest(self.models.student),
            "device": self._context.device,
            "precision": self._context.precision(),
        }

    def _tokens(self, split: Split) -> TokenDataset:
        return open_sequences(self._context, self.models, split)

    def _held_out(self, split: Split) -> list[TeacherSignals]:
        """The signals of a held-out split, in memory."""
        tokens = self._tokens(split)
        source = online_signals(self._context, self.models, tokens)
        return list(_batches(source, len(tokens.codes), self._recipe.training.batch_size))

    @cached_property
    def _validation_sets(self) -> dict[Split, list[TeacherSignals]]:
        splits: tuple[Split, ...] = ("validation", "test")
        return {split: self._held_out(split) for split in splits}

    @cached_property
    def _training_set(self) -> SignalSet:
        tokens = self._tokens("train")
        return SignalSet(cached_signals(self._context, self.models, tokens), len(tokens.codes))

    def _task(self, trial: SweepTrial) -> TrackedDistillTask:
        training = trial.recipe.training
        student = new_student(trial.recipe, self.models.teacher).to(self._context.device)
        config = objective_config(trial.recipe, training.steps)
        held_out = self._validation_sets
        return TrackedDistillTask(student, self._training_set, held_out, config, training.batch_size, training.seed)

    def _train(self, trial: SweepTrial, checkpoints: CheckpointManager) -> tuple[Weights, TrialCurves]:
        training, context = trial.recipe.training, self._context
        torch.manual_seed(training.seed)
        task, start = self._task(trial), checkpoints.latest()
        settings = AdamConfig(weight_decay=training.weight_decay, max_grad_norm=training.max_grad_norm)
        state = start.state if start is not None else None
        engine = TorchEngine(task.module, settings, context.precision(), context.device, state)
        config = trainer_config(training, training.steps, training.learning_rate, MONITOR)
        log = context.run.trial_metrics_key(trial.key)
        metrics = MetricsLog(self._store, log, start.step if start is not None else -1)
        diverged = None
        try:
            Trainer(task, engine, config, metrics, checkpoints, start=start).run()
            weights = dict(full_state(engine).weights)
        except NonFiniteLossError as error:  # a result like any other: its last checkpoint is evaluated
            metrics.flush()
            checkpoint = checkpoints.latest()
            assert checkpoint is not None, "training begins with a checkpoint"
            weights, diverged = dict(checkpoint.state.weights), Divergence(step=checkpoint.step, reason=str(error))
        outcome = f", diverged: {diverged.reason}" if diverged else ""
        print(f"trained {trial.grid}, {trial.value}, seed {trial.seed}{outcome}", flush=True)
        return weights, TrialCurves(rows=tuple(read_metrics(self._store, log)), diverged=diverged)


def _batches(source: SignalSource, rows: int, size: int) -> Iterator[TeacherSignals]:
    return (source(np.arange(start, min(start + size, rows))) for start in range(0, rows, size))
