"""Divergences between a teacher's and a student's distribution over codes.

With p the teacher, q the student and a skew λ (TinyMusician, arXiv 2509.00914, eq. 1-3; the skewed forms are
DistiLLM's, arXiv 2402.03898, eq. 4-5):

    forward_kl          KL(p ‖ q)
    reverse_kl          KL(q ‖ p)
    skew_forward_kl     KL(p ‖ λ·p + (1-λ)·q)     at most -log λ
    skew_reverse_kl     KL(q ‖ (1-λ)·p + λ·q)     at most -log λ

The first half of this file works on log-probabilities [..., V] and gives nats [...]; 0·log 0 counts as 0, and a
probability of 0 under a positive one gives infinity. The second half takes logits [B, K, T, V] and a mask [B, K, T].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q): mass-covering."""
    return _expected_ratio(log_p, log_q)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q ‖ p): mode-seeking."""
    return _expected_ratio(log_q, log_p)


def skew_forward_kl(log_p: Tensor, log_q: Tensor, skew: float) -> Tensor:
    """KL(p ‖ λ·p + (1-λ)·q): the student smoothed by the teacher."""
    return _expected_ratio(log_p, log_mixture(log_q, log_p, skew))


def skew_reverse_kl(log_p: Tensor, log_q: Tensor, skew: float) -> Tensor:
    """KL(q ‖ (1-λ)·p + λ·q): the teacher softened by the student."""
    return _expected_ratio(log_q, log_mixture(log_p, log_q, skew))


def entropy(log_q: Tensor) -> Tensor:
    """The entropy of q."""
    return -_expected_ratio(log_q, torch.zeros_like(log_q))


def cross_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The cross-entropy -Σ q·log p of the student's codes under the teacher."""
    return reverse_kl(log_p, log_q) + entropy(log_q)


def log_mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """log((1 - share)·a + share·b), finite wherever one of the two is, with finite gradients."""
    if share == 0:
        return log_a
    nowhere = torch.isneginf(log_a) & torch.isneginf(log_b)
    zero = torch.zeros((), dtype=log_a.dtype, device=log_a.device)
    left = torch.where(nowhere, zero, log_a) + math.log1p(-share)
    right = torch.where(nowhere, zero, log_b) + math.log(share)
    return torch.where(nowhere, -torch.inf, torch.logaddexp(left, right))


def _expected_ratio(log_a: Tensor, log_b: Tensor) -> Tensor:
    """The expectation of log a - log b under a, over the last axis; entries without probability under a count 0."""
    probability = log_a.exp()
    zero = torch.zeros((), dtype=log_a.dtype, device=log_a.device)
    live = probability > 0
    return (probability * (torch.where(live, log_a, zero) - torch.where(live, log_b, zero))).sum(-1)


Divergence = Callable[[Tensor, Tensor], Tensor]


def on_logits(
    divergence: Divergence,
    teacher_BKTV: Tensor,
    student_BKTV: Tensor,
    mask_BKT: Tensor,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    """A divergence of softmax(z / τ) at every position, times τ², 0 outside the mask: [B, K, T], in nats.

    `temperature` is a number, or broadcasts to [B, K, T]. Values outside the mask may be arbitrary, even NaN. The
    factor τ² keeps gradients comparable over temperatures (Hinton et al., arXiv 1503.02531, section 2).
    """
    tau = torch.as_tensor(temperature, device=student_BKTV.device).expand(mask_BKT.shape)
    log_p, log_q = (_log_probabilities(z, mask_BKT, tau) for z in (teacher_BKTV, student_BKTV))
    return divergence(log_p, log_q) * tau.to(log_q.dtype).square() * mask_BKT


def _log_probabilities(logits: Tensor, mask: Tensor, temperature: Tensor) -> Tensor:
    """Log softmax(z / τ) in at least float32, with all rows outside the mask made uniform."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    masked = torch.where(mask[..., None], wide, torch.zeros((), dtype=wide.dtype, device=wide.device))
    return F.log_softmax(masked / temperature.to(wide.dtype)[..., None], dim=-1)


def mean_over_valid(values_BKT: Tensor, mask_BKT: Tensor) -> Tensor:
    """The mean over the pairs (codebook, step) that carry a code."""
    return values_BKT.sum() / mask_BKT.sum().clamp(min=1)


def mean_per_codebook(values_BKT: Tensor, mask_BKT: Tensor) -> Tensor:
    """The mean of each codebook's valid positions, [K]."""
    return values_BKT.sum((0, 2)) / mask_BKT.sum((0, 2)).clamp(min=1)
