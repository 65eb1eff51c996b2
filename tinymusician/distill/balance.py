"""Balances several losses: their weights follow a rule while the losses fall.

Every loss L is divided by its value before training, r = L / L₀, so that units do not matter. Then

    uncertainty   Σ ½·exp(-s)·r + ½·s, with s = log σ² of each loss, learned with the module (arXiv 1705.07115, eq. 7 in
                  the logarithmic form of its section 3.2)
    rates         Σ w·r, with w = n·softmax(r / T): the loss that has fallen least weighs most. The softmax of dynamic
                  weight averaging (arXiv 1803.10704, eq. 7, T = 2) over GradNorm's training rates r (arXiv 1711.02257,
                  section 3), which need no memory of earlier steps
    equal         Σ r
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

Method = Literal["uncertainty", "rates", "equal"]

_SOFTMAX_TEMPERATURE = 2.0
_LR_MULTIPLIER = 10.0
"""The learning rate of log variances, as a multiple of that of the weights."""


class BalancedModule(nn.Module):
    """A module, and the learned log variances of its `count` losses; called like the module, it returns both."""

    def __init__(self, part: nn.Module, method: Method, count: int) -> None:
        super().__init__()
        self.part = part
        self.scaled_log_variances = nn.Parameter(torch.zeros(count)) if method == "uncertainty" else None

    def forward(self, *inputs: Any) -> tuple[Any, Tensor | None]:
        """The module's output, and the log variances [n] of its losses if they are learned."""
        return self.part(
            *inputs
        ), None if self.scaled_log_variances is None else _LR_MULTIPLIER * self.scaled_log_variances


def balance(
    method: Method, losses: Mapping[str, Tensor], before: Mapping[str, float], log_variances: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The balanced sum of losses, and the weight of each by name.

    `before` are their values before training; `log_variances` [n] come from `BalancedModule`.
    """
    relative_losses = torch.stack([losses[name].float() / before[name] for name in losses])
    if method == "uncertainty":
        assert log_variances is not None, "the module was made for this method"
        weights = 0.5 * torch.exp(-log_variances)
        total = (weights * relative_losses + 0.5 * log_variances).sum()
    else:
        detached = relative_losses.detach()
        weights = (
            len(detached) * torch.softmax(detached / _SOFTMAX_TEMPERATURE, 0)
            if method == "rates"
            else torch.ones_like(detached)
        )
        total = (weights * relative_losses).sum()
    return total, dict(zip(losses, weights.detach(), strict=True))
