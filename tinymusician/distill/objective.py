"""The six objectives, each a weighted sum of four divergences, evaluated in chunks to save memory.

    forward         KL(p ‖ q)
    reverse         KL(q ‖ p)
    fixed_bikl      w·KL(p ‖ q) + (1-w)·KL(q ‖ p)
    bikl            KL(p ‖ q) + KL(q ‖ p)
    switched_bikl    α(t)·KL(p ‖ q) + (1-α(t))·KL(q ‖ p)
    stage_mixed     α(t)·[β·KL(p ‖ q) + (1-β)·KL(p ‖ S_λ)] + (1-α(t))·[γ·KL(q ‖ p) + (1-γ)·KL(q ‖ T_λ)]

The last is TinyMusician's (arXiv 2509.00914, eq. 4); the others are its baselines (its Table 2).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tinymusician.models.divergences import (
    Divergence,
    forward_kl,
    on_logits,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
)

ObjectiveName = Literal["forward", "reverse", "fixed_bikl", "bikl", "switched_bikl", "stage_mixed"]

_NUMBERS_AT_A_TIME, _ON_A_GPU = 2**18, 2**24
"""Logits per chunk on a CPU and on a GPU: a chunk's temporaries, some twenty times as many, stay small.

On a GPU, launching small chunks would take longer than computing them.
"""


class LossWeights(NamedTuple):
    """The weights of the four divergences at one training step, and the skew λ of the last two."""

    forward: float
    reverse: float
    skew_forward: float = 0.0
    skew_reverse: float = 0.0
    skew: float = 0.0

    def divergence(self) -> Divergence:
        """The weighted sum as one function of log-probabilities; terms of weight 0 are not computed."""

        def total(log_p: Tensor, log_q: Tensor) -> Tensor:
            result = torch.zeros(log_q.shape[:-1], dtype=log_q.dtype, device=log_q.device)
            if self.forward:
                result = result + self.forward * forward_kl(log_p, log_q)
            if self.reverse:
                result = result + self.reverse * reverse_kl(log_p, log_q)
            if self.skew_forward:
                result = result + self.skew_forward * skew_forward_kl(log_p, log_q, self.skew)
            if self.skew_reverse:
                result = result + self.skew_reverse * skew_reverse_kl(log_p, log_q, self.skew)
            return result

        return total


def mixture(
    name: ObjectiveName, alpha: float, weight: float = 0.5, beta: float = 0.5, gamma: float = 0.5, skew: float = 0.1
) -> LossWeights:
    """The weights of objective `name` at stage `alpha`; `weight` is fixed_bikl's w, the rest is stage_mixed's."""
    rest = 1 - alpha
    mixtures = {
        "forward": LossWeights(1.0, 0.0),
        "reverse": LossWeights(0.0, 1.0),
        "fixed_bikl": LossWeights(weight, 1 - weight),
        "bikl": LossWeights(1.0, 1.0),
        "switched_bikl": LossWeights(alpha, rest),
        "stage_mixed": LossWeights(alpha * beta, rest * gamma, alpha * (1 - beta), rest * (1 - gamma), skew),
    }
    return mixtures[name]


def distillation_loss(
    teacher_BKTV: Tensor,
    student_BKTV: Tensor,
    mask_BKT: Tensor,
    weights: LossWeights,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    """The objective at every position, [B, K, T] in nats, 0 outside the mask; gradients flow to the student only.

    See `chunked` for its memory.
    """
    return chunked(weights.divergence(), teacher_BKTV, student_BKTV, mask_BKT, temperature)


def chunked(
    divergence: Divergence,
    teacher_BKTV: Tensor,
    student_BKTV: Tensor,
    mask_BKT: Tensor,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    """`on_logits`, but the peak memory beyond the two logits is the student's gradient and one chunk's temporaries.

    The gradient is computed together with the value, chunk by chunk, and only if the student needs one. Second
    derivatives are therefore not available.
    """
    values: Tensor = _ChunkedLoss.apply(teacher_BKTV, student_BKTV, mask_BKT, temperature, divergence)  # type: ignore[no-untyped-call]
    return values


class _ChunkedLoss(torch.autograd.Function):
    """Positions are independent, so each chunk's gradient can be computed right after its value."""

    @staticmethod
    def forward(
        ctx: Any, teacher: Tensor, student: Tensor, mask: Tensor, temperature: float | Tensor, divergence: Divergence
    ) -> Tensor:
        vocabulary = student.shape[-1]
        tau = torch.as_tensor(temperature, device=student.device).expand(mask.shape).reshape(-1)
        rows_p, rows_q = teacher.reshape(-1, vocabulary), student.reshape(-1, vocabulary)
        positions = mask.reshape(-1).nonzero()[:, 0]
        at_once = _ON_A_GPU if student.is_cuda else _NUMBERS_AT_A_TIME
        wide = torch.promote_types(student.dtype, torch.float32)
        values = torch.zeros(mask.numel(), dtype=wide, device=student.device)
        gradient = torch.zeros_like(rows_q) if ctx.needs_input_grad[1] else None
        for piece in torch.split(positions, max(1, at_once // vocabulary)):
            with torch.set_grad_enabled(gradient is not None):
                logits = rows_q[piece].detach().requires_grad_(gradient is not None)
                whole = torch.ones(len(piece), dtype=torch.bool, device=student.device)
                value = on_logits(divergence, rows_p[piece], logits, whole, tau[piece])
                if gradient is not None:
                    gradient[piece] = torch.autograd.grad(value.sum(), logits)[0]
            values[piece] = value.detach()
        ctx.gradient = None if gradient is None else gradient.view_as(student)
        return values.view(mask.shape)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[None, Tensor, None, None, None]:
        """Scale the gradient in place, so that it exists once; a second backward pass is an error."""
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("distillation_loss: backward() ran before; its gradient is kept for one pass only")
        return None, gradient.mul_(outer[0][..., None]), None, None, None
