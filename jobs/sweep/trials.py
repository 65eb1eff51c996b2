"""The trainings of a sweep: which there are, and one of them on one actor, from cached teacher signals.

A training is known by everything it depends on, so one that stands in two grids, or in another sweep, is made once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.distill.finalize import MONITOR
from jobs.distill.job import loss_weights_at
from jobs.distill.models import TeacherStudent, load_models, new_student
from jobs.distill.teacher import cached_signals, online_signals, open_sequences, signal_shard_cache
from jobs.evaluate.evaluator import Evaluator
from jobs.worker.context import WorkerContext
from jobs.worker.stage import trainer_config
from tinymusician.data.shards import ShardCache, fingerprint
from tinymusician.data.splits import Split
from tinymusician.data.tokens import TokenDataset
from tinymusician.distill.objective import distillation_loss
from tinymusician.distill.signals import SignalSource, TeacherSignals
from tinymusician.distill.task import ObjectiveTask, TemperatureSchedule, closeness
from tinymusician.errors import NonFiniteLossError
from tinymusician.evaluate.generators import Generator, TorchGenerator
from tinymusician.models.divergences import mean_over_valid, on_logits, reverse_kl
from tinymusician.models.musicgen import ConditionedDecoder
from tinymusician.models.prune_layers import weights_digest
from tinymusician.recipe import Grid, Recipe, parse_recipe
from tinymusician.training.checkpoint import CheckpointManager
from tinymusician.training.engine import AdamConfig, TorchEngine
from tinymusician.training.loop import Trainer
from tinymusician.training.metrics import MetricsLog, read_metrics
from tinymusician.training.task import Model

_OBJECTIVES = ("forward", "reverse", "fixed_bikl", "bikl", "switched_bikl", "stage_mixed")
_SKEWED_OBJECTIVES = "stage_mixed"
GRIDS: dict[Grid, dict[str, dict[str, Any]]] = {
    "objectives": {name: {"objective": {"name": name}} for name in _OBJECTIVES},
    "temperature": {
        "τ 1": {"temperature": {"initial": 1.0, "final": 1.0}},
        "τ 2": {"temperature": {"initial": 2.0, "final": 2.0}},
        "τ 2 to 1, along the sequence": {"temperature": {"initial": 2.0, "final": 1.0, "axis": "sequence"}},
        "τ 2 to 1, along training": {"temperature": {"initial": 2.0, "final": 1.0, "axis": "training"}},
    },
    "skew": {f"λ {skew:g}": {"objective": {"name": _SKEWED_OBJECTIVES, "skew": skew}} for skew in (0.0, 0.1, 0.3, 0.5)},
    "switch": {
        f"switch at {at:g}": {"objective": {"name": _SKEWED_OBJECTIVES, "switch": at}} for at in (0.25, 0.5, 0.75, 1.0)
    },
}
"""What the paper's figures compare, and the next checks of its summary; everything else is the recipe's."""

_DEPENDS_ON = ("teacher", "student", "sequences", "temperature", "objective", "training")
_WEIGHTS = "weights/"
DIVERGED = "diverged"
"""In the last row of a training whose loss was no number any more: why."""


@dataclass(frozen=True)
class SweepTrial:
    """One training: a value of a grid, and the seed."""

    grid: Grid
    value: str
    seed: int
    recipe: Recipe

    @property
    def facts(self) -> dict[str, Any]:
        """Everything it depends on."""
        content = self.recipe.model_dump(mode="json")
        return {part: content[part] for part in _DEPENDS_ON}

    @property
    def model_id(self) -> str:
        """Its student's name among the voices of an evaluation."""
        return f"trial {fingerprint(self.facts)[:16]}"


def trials_of(recipe: Recipe) -> list[SweepTrial]:
    """All trainings of a recipe's sweep."""
    return [
        SweepTrial(grid, value, seed, _with_changes(recipe, changes, seed))
        for grid in recipe.sweep.over
        for value, changes in GRIDS[grid].items()
        for seed in range(recipe.training.seed, recipe.training.seed + recipe.sweep.seeds)
    ]


def _with_changes(recipe: Recipe, changes: dict[str, Any], seed: int) -> Recipe:
    content = recipe.model_dump(mode="json")
    content |= changes
    content["training"]["seed"] = seed
    return parse_recipe(content, recipe.name)


class TrackedDistillTask(ObjectiveTask):
    """Distillation that tells its own objective's loss on validation and test prompts, as it is at that step."""

    def __init__(self, test: list[TeacherSignals], validation: list[TeacherSignals], **task: Any) -> None:
        super().__init__(**task)
        self._splits, self._latest = {"validation": validation, "test": test}, 0

    def loss(self, model: Model, batch: TeacherSignals, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective, at a step that is remembered."""
        self._latest = step
        return super().loss(model, batch, step)

    def validate(self, model: Model) -> dict[str, float]:
        """By split: the objective's loss, forward KL (`kl`), reverse KL and agreement."""
        metrics: dict[str, float] = {}
        for split, batches in self._splits.items():
            parts = [self._measured(model, batch) for batch in batches]
            rows = [len(batch.logits) for batch in batches]
            for name in parts[0]:
                metrics[f"{split}/{name}"] = float(np.average([part[name] for part in parts], weights=rows))
        return metrics | {MONITOR: metrics[f"validation/{MONITOR}"]}

    def _measured(self, model: Model, batch: TeacherSignals) -> dict[str, float]:
        logits, mask = self.student_logits(model, batch), batch.sequences.mask
        tau = self.softening.at(self._latest, mask.shape[-1]).to(logits.device)
        values = distillation_loss(batch.logits, logits, mask, self.mixture_at(self._latest), tau)
        near = closeness(batch.logits, logits, mask)
        reverse = mean_over_valid(on_logits(reverse_kl, batch.logits.float(), logits.float(), mask), mask)
        return {
            "loss": mean_over_valid(values, mask).item(),
            "kl": near["kl"].item(),
            "reverse_kl": reverse.item(),
            "agreement": near["agreement"].item(),
        }


class SweepEvaluator(Evaluator):
    """An evaluation whose voices are students that it trains itself."""

    def __init__(self, context: WorkerContext) -> None:
        super().__init__(context)
        self._alone = WorkerContext(context.store_url, context.run_id, 0, 1, context.device)
        self.trials = {trial.model_id: trial for trial in trials_of(self.recipe)}

    @cached_property
    def _pair(self) -> TeacherStudent:
        return load_models(self.recipe)

    def _tokens(self, split: Split) -> TokenDataset:
        return open_sequences(self._alone, self._pair, split)

    def _held(self, split: Split) -> list[TeacherSignals]:
        """The signals of a held-out split, in memory."""
        tokens = self._tokens(split)
        return list(
            _batches(
                online_signals(self._alone, self._pair, tokens), len(tokens.codes), self.recipe.training.batch_size
            )
        )

    @cached_property
    def _validation(self) -> list[TeacherSignals]:
        return self._held("validation")

    @cached_property
    def _test(self) -> list[TeacherSignals]:
        return self._held("test")

    @cached_property
    def _training(self) -> tuple[SignalSource, int]:
        tokens = self._tokens("train")
        return cached_signals(self._alone, self._pair, tokens), len(tokens.codes)

    def trained(self, trial: SweepTrial) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """The student's weights after its last step and the rows of its metrics, from the store or trained now."""
        cache = ShardCache(self.store, "trials", {**trial.facts, **self._learns_from}, 1)
        place = self.context.run.checkpoints_key(f"trials/{trial.model_id.removeprefix('trial ')}")
        if cache.missing():
            cache.write(0, self._train(trial, CheckpointManager(self.store, place, MONITOR)))
        for entry in list(self.store.list(f"{place}/")):
            self.store.delete(entry.key)
        arrays = cache.read(0)
        rows: list[dict[str, Any]] = json.loads(arrays.pop("rows").tobytes())
        return {name.removeprefix(_WEIGHTS): torch.from_numpy(value) for name, value in arrays.items()}, rows

    @cached_property
    def _learns_from(self) -> dict[str, Any]:
        """What every training depends on beside its own part of the recipe: signals, first weights, arithmetic."""
        shards = signal_shard_cache(self._alone, self._pair, self._tokens("train"))
        return {
            "signals": shards.fingerprint,
            "begins_with": weights_digest(self._pair.student),
            "device": self.context.device,
            "precision": self.context.precision(),
        }

    def _train(self, trial: SweepTrial, checkpoints: CheckpointManager) -> dict[str, Any]:
        training, soft = trial.recipe.training, trial.recipe.temperature
        torch.manual_seed(training.seed)
        source, count = self._training
        task = TrackedDistillTask(
            self._test,
            self._validation,
            student=new_student(trial.recipe, self._pair.teacher).to(self.context.device),
            train=source,
            train_rows=count,
            mixture_at=partial(loss_weights_at, trial.recipe.objective, training.steps),
            softening=TemperatureSchedule(soft.initial, soft.final, soft.axis, training.steps),
            batch_size=training.batch_size,
            seed=training.seed,
        )
        run = self.context.run
        start = checkpoints.latest()
        state = start.state if start is not None else None
        settings = AdamConfig(weight_decay=training.weight_decay, max_grad_norm=training.max_grad_norm)
        engine = TorchEngine(task.module, settings, self.context.precision(), self.context.device, state)
        plan = trainer_config(training, training.steps, training.learning_rate, MONITOR)
        log = run.key(f"trials/{trial.model_id.removeprefix('trial ')}.jsonl")
        metrics = MetricsLog(self.store, log, start.step if start is not None else -1)
        how = f"trained {trial.grid}, {trial.value}, seed {trial.seed}"
        try:
            Trainer(task, engine, plan, metrics, checkpoints, start=start).run()
            weights, last = engine.state().weights, []
        except NonFiniteLossError as error:  # a result like any other: what it was at its last checkpoint is judged
            metrics.flush()
            checkpoint = checkpoints.latest()
            assert checkpoint is not None, "the loop begins with a checkpoint"
            weights, last = checkpoint.state.weights, [{"step": checkpoint.step, DIVERGED: str(error)}]
            how += f", diverged: {error}"
        print(how, flush=True)
        rows = [*read_metrics(self.store, log), *last]
        arrays = {_WEIGHTS + name: value.numpy() for name, value in weights.items()}
        return {**arrays, "rows": np.frombuffer(json.dumps(rows).encode(), np.uint8)}

    def _opened(self, model_id: str) -> Generator:
        if model_id not in self.trials:
            return super()._opened(model_id)
        trial = self.trials[model_id]
        student = new_student(trial.recipe, self._pair.teacher)
        ConditionedDecoder(student).load_state_dict(self.trained(trial)[0])
        guided = trial.recipe.teacher.target == "guided"
        student.generation_config.guidance_scale = 1.0 if guided else self.settings.guidance
        return TorchGenerator(student, self._pair.tokenizer, self.context.device)


def _batches(source: SignalSource, rows: int, size: int) -> Any:
    return (source(np.arange(start, min(start + size, rows))) for start in range(0, rows, size))
