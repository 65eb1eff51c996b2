"""Distillation as a training task: student logits against teacher signals under one objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from tinymusician.data.tokens import WINDOW_ROWS, rows_of_step
from tinymusician.distill.closeness import closeness, held_out_closeness
from tinymusician.distill.guidance_scales import FixedScaleSource, GuidanceSampler
from tinymusician.distill.hidden_states import HiddenLoss, ProjectedDecoder, hidden_loss
from tinymusician.distill.objective import LossWeights, distillation_loss
from tinymusician.distill.on_policy import OnPolicySampler
from tinymusician.distill.schedules import TemperatureSchedule
from tinymusician.distill.signals import (
    DecoderBatch,
    Rows,
    SignalSet,
    SignalSource,
    TeacherSignals,
    concat_signals,
    condition,
    guided_at,
)
from tinymusician.models.conditional_decoder import ConditionedDecoder
from tinymusician.models.divergences import mean_over_valid, mean_per_codebook
from tinymusician.models.protocols import Musicgen
from tinymusician.training.task import Model


@dataclass(frozen=True)
class HiddenLossConfig:
    """The loss on hidden states: its kind, its weight beside the objective, and the teacher's width."""

    kind: HiddenLoss
    weight: float
    width: int


@dataclass(frozen=True)
class ObjectiveConfig:
    """The objective: its weights by training step, its temperature, and the loss on hidden states, if any.

    `hard` is the share of the cross-entropy with the sequences' own codes.
    """

    loss_weights_at: Callable[[int], LossWeights]
    temperature: TemperatureSchedule
    hidden: HiddenLossConfig | None = None
    hard: float = 0.0


class ObjectiveTask:
    """Trains a student's decoder on teacher signals under one objective. Subclasses implement `validate`."""

    def __init__(
        self,
        student: Musicgen,
        train: SignalSet,
        objective: ObjectiveConfig,
        batch_size: int,
        seed: int,
        on_policy: OnPolicySampler | None = None,
        scales: GuidanceSampler | None = None,
    ) -> None:
        """`on_policy` replaces some rows by the student's own samples.

        With `scales` the student is guidance-conditioned, and the source must give both passes. With a loss on hidden
        states, the source must give the teacher's states.
        """
        self.student, self.config = student, objective
        hidden = objective.hidden
        self.module = ProjectedDecoder(student, hidden.width) if hidden else ConditionedDecoder(student)
        self.train, self.on_policy, self.scales = train, on_policy, scales
        self.batch_size, self.seed = batch_size, seed

    def rows(self, step: int, part: int, parts: int) -> Rows:
        """Epochs are permutations; the parts of a step are disjoint."""
        return rows_of_step(step, part, parts, self.batch_size, self.train.rows, self.seed, WINDOW_ROWS)

    def batch(self, step: int, part: int, parts: int) -> TeacherSignals:
        """The signals of a part's rows; the rows of the same part of the next steps are announced to the source."""
        source = self.train.source
        (rows, sampled), *then = (self._split(step + later, part, parts) for later in range(source.prefetch + 1))
        batches = []
        if len(rows):
            announced = [later for later, _ in then if len(later)]
            batches.append(self.guided(source(rows, announced), step, part))
        if self.on_policy is not None and len(sampled):
            samples = self.on_policy(step, part, parts, lambda at: self._split(at, part, parts)[1])
            batches.append(self.guided(samples, step, parts + part))
        return reduce(concat_signals, batches)

    def guided(self, signals: TeacherSignals, step: int, stream: int) -> TeacherSignals:
        """The signals at sampled guidance scales, for a guidance-conditioned student; others as they are."""
        if self.scales is None:
            return signals
        return guided_at(signals, self.scales.sample(self.seed, step, stream, len(signals.logits) // 2))

    def _split(self, step: int, part: int, parts: int) -> tuple[Rows, Rows]:
        """A part's rows: those whose sequences are given, and those whose captions the student samples from."""
        rows = self.rows(step, part, parts)
        num_sampled = self.on_policy.count(step, len(rows)) if self.on_policy else 0
        return rows[: len(rows) - num_sampled], rows[len(rows) - num_sampled :]

    def loss(
        self, model: Model, batch: TeacherSignals, step: int, diagnostics: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective's mean over valid codes, and metrics: as diagnostics, KL, agreement and entropy too."""
        logits, states = self._forward(model, batch)
        loss, metrics = self.objective(logits, batch, step, diagnostics)
        if self.on_policy:
            metrics["on_policy_share"] = torch.tensor(self.on_policy.count(step, self.batch_size) / self.batch_size)
            metrics["sampling_seconds"], self.on_policy.seconds = torch.tensor(self.on_policy.seconds), 0.0
        if hidden := self.config.hidden:
            assert states is not None
            assert batch.states is not None, "the source gives states"
            metrics["hidden"] = hidden_loss(hidden.kind, states, batch.states, batch.sequences.mask)
            loss = loss + hidden.weight * metrics["hidden"]
        return loss, metrics

    def objective(
        self, logits: Tensor, batch: TeacherSignals, step: int, diagnostics: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective of given logits, and its metrics; as diagnostics, the closeness of the logits too."""
        mask, weights = batch.sequences.mask, self.config.loss_weights_at(step)
        tau = self.config.temperature.at(step, mask.shape[-1]).to(logits.device)
        values = distillation_loss(batch.logits, logits, mask, weights, tau)
        metrics = {f"loss/{k + 1}": value for k, value in enumerate(mean_per_codebook(values.detach(), mask))}
        if diagnostics:
            metrics |= closeness(batch.logits, logits.detach(), mask)
        metrics["alpha"] = torch.tensor(_forward_share(weights))
        metrics["temperature"] = tau.mean()
        loss = mean_over_valid(values, mask)
        if hard := self.config.hard:
            labels = hard_loss(logits, batch.sequences)
            metrics["hard"] = labels.detach()
            loss = (1 - hard) * loss + hard * labels
        return loss, metrics

    def student_logits(self, model: Model, signals: TeacherSignals) -> Tensor:
        """The logits [R, K, S, V] of the student, as `model` runs it, on the signals' sequences."""
        return self._forward(model, signals)[0]

    def _forward(self, model: Model, signals: TeacherSignals) -> tuple[Tensor, Tensor | None]:
        """The logits, and with a loss on hidden states the layers' states, projected to the teacher's width."""
        text = condition(self.student, signals.sequences)
        output = model(signals.sequences.inputs, text.states, text.mask, signals.sequences.scale)
        return output if self.config.hidden else (output, None)


class DistillTask(ObjectiveTask):
    """Distillation, validated by the closeness to held-out signals."""

    def __init__(
        self,
        student: Musicgen,
        train: SignalSet,
        held_out: SignalSet,
        objective: ObjectiveConfig,
        batch_size: int,
        seed: int,
        on_policy: OnPolicySampler | None = None,
        scales: GuidanceSampler | None = None,
    ) -> None:
        super().__init__(student, train, objective, batch_size, seed, on_policy, scales)
        self.held_out = held_out

    def validate(self, model: Model) -> dict[str, float]:
        """The metrics of `closeness` on held-out prompts.

        A guidance-conditioned student is validated at several scales: `kl@SCALE` of each, and the means.
        """

        def closeness_to(source: SignalSource) -> dict[str, float]:
            rows = self.held_out.rows
            return held_out_closeness(source, rows, self.batch_size, lambda s: self.student_logits(model, s))

        source = self.held_out.source
        if self.scales is None:
            return closeness_to(source)
        by_scale = {scale: closeness_to(FixedScaleSource(source, scale)) for scale in self.scales.validated}
        names = next(iter(by_scale.values()))
        means = {name: sum(metrics[name] for metrics in by_scale.values()) / len(by_scale) for name in names}
        return means | {f"kl@{scale:g}": metrics["kl"] for scale, metrics in by_scale.items()}


def hard_loss(logits_RKSV: Tensor, sequences: DecoderBatch) -> Tensor:
    """The cross-entropy with the sequences' codes, in nats per code.

    The labels are the inputs of the next step; the last code of the last codebook is no input, and not counted.
    """
    labels, mask = sequences.inputs[:, :, 1:], sequences.mask[:, :, :-1]
    return F.cross_entropy(logits_RKSV[:, :, :-1][mask].float(), labels[mask])


def _forward_share(weights: LossWeights) -> float:
    """The share of the weights that is forward: α where they sum to one."""
    forward, reverse = weights.forward + weights.skew_forward, weights.reverse + weights.skew_reverse
    return forward / (forward + reverse)
