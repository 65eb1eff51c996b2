"""Least-squares initialization of the linear maps from a student's states to its teacher's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_RIDGE = 1e-3


@torch.no_grad()
def fit(map_: nn.Linear | nn.Conv1d, states_NC: Tensor, targets_ND: Tensor) -> None:
    """Set a linear map to its least-squares solution, targets ≈ states·Wᵀ + b, with a ridge of a thousandth.

    The ridge is relative to the states' mean variance, so their scale makes no difference.
    """
    states, targets = (each.double().cpu() for each in (states_NC, targets_ND))
    from_mean, to_mean = states.mean(0), targets.mean(0)
    centred = states - from_mean
    square = centred.T @ centred
    square += _RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    weight = torch.linalg.solve(square, centred.T @ (targets - to_mean)).T
    assert map_.bias is not None, "all maps have one"
    map_.weight.copy_(weight.reshape(map_.weight.shape))
    map_.bias.copy_(to_mean - weight @ from_mean)
