"""Distillation as a task of the training loop: student logits against teacher signals under one objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tinymusician.data.tokens import rows_of_step
from tinymusician.distill.hidden_states import HiddenLoss, ProjectedDecoder, hidden_loss
from tinymusician.distill.objective import LossWeights, chunked, distillation_loss
from tinymusician.distill.on_policy import OnPolicySampler
from tinymusician.distill.schedules import temperature
from tinymusician.distill.signals import Rows, SignalSource, TeacherSignals, condition, guided_at, joined
from tinymusician.models.divergences import cross_entropy, entropy, forward_kl, mean_over_valid, mean_per_codebook
from tinymusician.models.musicgen import ConditionedDecoder
from tinymusician.training.task import Model


@dataclass(frozen=True)
class GuidanceSampler:
    """The guidance scales that a student is told: drawn evenly from `low` to `high`, judged at a few between them."""

    low: float
    high: float

    @property
    def judged(self) -> list[float]:
        """Both ends and the middle."""
        return [self.low, (self.low + self.high) / 2, self.high]

    def drawn(self, seed: int, step: int, part: int, rows: int) -> Tensor:
        """The scales of a part's rows, [R]."""
        rng = np.random.default_rng((seed, step, part))
        return torch.from_numpy(rng.uniform(self.low, self.high, rows).astype(np.float32))


class FixedScaleSource:
    """A source of both passes as one of their guided distribution at `scale`."""

    def __init__(self, source: SignalSource, scale: float) -> None:
        self._source, self._scale, self.ahead = source, scale, source.ahead

    def __call__(self, rows: Rows, then: Sequence[Rows] = ()) -> TeacherSignals:
        return guided_at(self._source(rows, then), torch.full((len(rows),), self._scale))


@dataclass(frozen=True)
class HiddenLossConfig:
    """The loss on hidden states: its kind, its weight beside the objective, and the teacher's width."""

    kind: HiddenLoss
    weight: float
    width: int


@dataclass(frozen=True)
class TemperatureSchedule:
    """τ from `initial` to `final`, along the `steps` of training or along the sequence."""

    initial: float
    final: float
    axis: Literal["sequence", "training"]
    steps: int

    def at(self, step: int, length: int) -> Tensor:
        """τ at a training step for each of `length` positions of the sequence, [S]."""
        if self.axis == "training":
            return torch.full((length,), temperature(step, self.steps, self.initial, self.final))
        return torch.tensor([temperature(place, length - 1, self.initial, self.final) for place in range(length)])


class ObjectiveTask:
    """Trains a student's decoder on the signals of `train` under one objective; how it is judged is its heirs' own."""

    def __init__(
        self,
        student: Any,
        train: SignalSource,
        train_rows: int,
        mixture_at: Callable[[int], LossWeights],
        softening: TemperatureSchedule,
        batch_size: int,
        seed: int,
        on_policy: OnPolicySampler | None = None,
        scales: GuidanceSampler | None = None,
        hidden: HiddenLossConfig | None = None,
    ) -> None:
        """`own` are the student's samples, which take the places of some rows.

        With `scales` the student is told its guidance, and the source gives both passes. With `hidden` its layers
        follow those of the teacher whose states the source gives.
        """
        self.student, self.hidden = student, hidden
        self.module = ProjectedDecoder(student, hidden.width) if hidden else ConditionedDecoder(student)
        self.on_policy, self.scales = on_policy, scales
        self.train, self.train_rows = train, train_rows
        self.mixture_at, self.softening = mixture_at, softening
        self.batch_size, self.seed = batch_size, seed

    def rows(self, step: int, part: int, parts: int) -> Rows:
        """Epochs are permutations; the parts of a step are disjoint."""
        return rows_of_step(step, part, parts, self.batch_size, self.train_rows, self.seed)

    def batch(self, step: int, part: int, parts: int) -> TeacherSignals:
        """The signals of a part's rows; its source hears what the same part of the following steps will ask."""
        (rows, sampled), *then = (self._dealt(step + later, part, parts) for later in range(self.train.ahead + 1))
        batches = []
        if len(rows):
            announced = [later for later, _ in then if len(later)]
            batches.append(self.guided(self.train(rows, announced), step, part))
        if self.on_policy is not None and len(sampled):
            played = self.on_policy(step, part, parts, lambda at: self._dealt(at, part, parts)[1])
            batches.append(self.guided(played, step, parts + part))
        return reduce(joined, batches)

    def guided(self, signals: TeacherSignals, step: int, draw: int) -> TeacherSignals:
        """Signals at scales of their own, if the student is told them."""
        if self.scales is None:
            return signals
        return guided_at(signals, self.scales.drawn(self.seed, step, draw, len(signals.logits) // 2))

    def _dealt(self, step: int, part: int, parts: int) -> tuple[Rows, Rows]:
        """A part's rows: those whose sequences are given, and those whose captions the student plays itself."""
        rows = self.rows(step, part, parts)
        num_sampled = self.on_policy.count(step, len(rows)) if self.on_policy else 0
        return rows[: len(rows) - num_sampled], rows[len(rows) - num_sampled :]

    def loss(self, model: Model, batch: TeacherSignals, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective's mean over valid codes, with per-codebook loss, KL, agreement and entropy beside it."""
        logits, states = self._answer(model, batch)
        loss, scalars = self.objective(logits, batch, step)
        if self.on_policy:
            scalars["own_share"] = torch.tensor(self.on_policy.count(step, self.batch_size) / self.batch_size)
            scalars["sampling_seconds"], self.on_policy.seconds = torch.tensor(self.on_policy.seconds), 0.0
        if self.hidden:
            assert batch.states is not None, "the source was asked for states"
            scalars["hidden"] = hidden_loss(self.hidden.kind, states, batch.states, batch.sequences.mask)
            loss = loss + self.hidden.weight * scalars["hidden"]
        return loss, scalars

    def objective(self, logits: Tensor, batch: TeacherSignals, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective alone, of logits that are already there."""
        mask, mixture = batch.sequences.mask, self.mixture_at(step)
        tau = self.softening.at(step, mask.shape[-1]).to(logits.device)
        values = distillation_loss(batch.logits, logits, mask, mixture, tau)
        scalars = {f"loss/{k + 1}": value for k, value in enumerate(mean_per_codebook(values.detach(), mask))}
        scalars |= closeness(batch.logits, logits.detach(), mask)
        scalars["alpha"] = torch.tensor(_stage(mixture))
        scalars["temperature"] = tau.mean()
        return mean_over_valid(values, mask), scalars

    def student_logits(self, model: Model, signals: TeacherSignals) -> Tensor:
        """What the student, as `model` trains it, says of these sequences, [R, K, S, V]."""
        return self._answer(model, signals)[0]

    def _answer(self, model: Model, signals: TeacherSignals) -> tuple[Tensor, Any]:
        """The logits, and the layers' states projected to the teacher's width if they are to follow it."""
        text = condition(self.student, signals.sequences)
        answer = model(signals.sequences.inputs, text.states, text.mask, signals.sequences.scale)
        return answer if self.hidden else (answer, None)


class DistillTask(ObjectiveTask):
    """The objective, and the student judged by its closeness to the signals of `held_out`."""

    def __init__(self, *, held_out: SignalSource, held_out_rows: int, **objective: Any) -> None:
        super().__init__(**objective)
        self.held_out, self.held_out_rows = held_out, held_out_rows

    def validate(self, model: Model) -> dict[str, float]:
        """Forward KL to the teacher (`kl`, nats a code), agreement and entropy on held-out prompts, by codebook too.

        A student that is told its guidance is judged at several scales: `kl@SCALE` of each, and the means.
        """

        def closeness_to(source: SignalSource) -> dict[str, float]:
            return held_out_closeness(
                source, self.held_out_rows, self.batch_size, lambda s: self.student_logits(model, s)
            )

        if self.scales is None:
            return closeness_to(self.held_out)
        by_scale = {scale: closeness_to(FixedScaleSource(self.held_out, scale)) for scale in self.scales.judged}
        names = next(iter(by_scale.values()))
        means = {name: sum(figures[name] for figures in by_scale.values()) / len(by_scale) for name in names}
        return means | {f"kl@{scale:g}": figures["kl"] for scale, figures in by_scale.items()}


def held_out_closeness(
    source: SignalSource, rows: int, batch_size: int, student_logits: Callable[[TeacherSignals], Tensor]
) -> dict[str, float]:
    """The means of `closeness` over all `rows` of a signal source."""
    totals: dict[str, float] = {}
    parts = _parts(rows, batch_size)
    for place, part in enumerate(parts):
        signals = source(part, parts[place + 1 : place + 1 + source.ahead])
        figures = closeness(signals.logits, student_logits(signals), signals.sequences.mask)
        for name, value in figures.items():
            totals[name] = totals.get(name, 0.0) + value.item() * len(part) / rows
    return totals


@torch.no_grad()
def closeness(teacher_RKSV: Tensor, student_RKSV: Tensor, mask_RKS: Tensor) -> dict[str, Tensor]:
    """How near the student is at τ = 1, by codebook and on average.

    `kl`: forward, nats a code. `agreement`: the share of equal likeliest codes. `entropy` of the student.
    `cross_entropy`: of the student's next codes under the teacher, in the context of the given sequences.
    """
    kl = chunked(forward_kl, teacher_RKSV, student_RKSV, mask_RKS)
    same = (teacher_RKSV.argmax(-1) == student_RKSV.argmax(-1)) & mask_RKS
    uncertainty = chunked(lambda _, log_q: entropy(log_q), teacher_RKSV, student_RKSV, mask_RKS)
    surprise = chunked(cross_entropy, teacher_RKSV, student_RKSV, mask_RKS)
    measures = {"kl": kl, "agreement": same.float(), "entropy": uncertainty, "cross_entropy": surprise}
    figures = {}
    for name, values in measures.items():
        per_book = mean_per_codebook(values, mask_RKS)
        figures[name] = per_book.mean()
        figures |= {f"{name}/{k + 1}": value for k, value in enumerate(per_book)}
    return figures


def _stage(mixture: LossWeights) -> float:
    """The share of the mixture that is forward: α where the weights sum to one."""
    forward, reverse = mixture.forward + mixture.skew_forward, mixture.reverse + mixture.skew_reverse
    return forward / (forward + reverse)


def _parts(rows: int, size: int) -> list[Rows]:
    return [np.arange(start, min(start + size, rows)) for start in range(0, rows, size)]
