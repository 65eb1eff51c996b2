"""Losses on hidden states: each student layer follows a teacher layer, through a projection that is learned with it.

mse      |P·h - H|² / |H|²   TinyBERT (arXiv 1909.10351, eq. 8), divided by the teacher's mean square
cosine   1 - cos(P·h, H)     DistilBERT (arXiv 1910.01108); PKD's normalized distance (arXiv 1908.09355) is twice it
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from tinymusician.models.conditional_decoder import ConditionedDecoder
from tinymusician.models.protocols import Musicgen

HiddenLoss = Literal["mse", "cosine"]


class ProjectedDecoder(ConditionedDecoder):
    """A student's decoder, with one projection per layer to its teacher's width D'; they are not part of the student.

    Called like `ConditionedDecoder`, it returns the logits, and the projected states of its layers [N, R, S, D'].
    """

    def __init__(self, student: Musicgen, teacher_width: int) -> None:
        super().__init__(student)
        config = student.config.decoder
        maps = [nn.Linear(config.hidden_size, teacher_width, bias=False) for _ in range(config.num_hidden_layers)]
        for each in maps:
            nn.init.orthogonal_(each.weight)
        self.projections = nn.ModuleList(maps)

    def forward(self, *inputs: Any) -> Any:
        """Logits and projected states."""
        logits, states = self.with_states(*inputs)
        return logits, torch.stack([one(state) for one, state in zip(self.projections, states, strict=True)])


PROJECTIONS = "projections."
"""The prefix of weights that a checkpoint has beside the student's."""


def followed_layers(student_layers: int, teacher_layers: int) -> list[int]:
    """The teacher layers that the layers of an unpruned student follow: evenly spaced, the last one the last."""
    return [round((layer + 1) * teacher_layers / student_layers) - 1 for layer in range(student_layers)]


def hidden_loss(kind: HiddenLoss, student_NRSD: Tensor, teacher_NRSD: Tensor, mask_RKS: Tensor) -> Tensor:
    """The mean over layers and over the steps that carry a code."""
    student, teacher = student_NRSD.float(), teacher_NRSD.float()
    carries = mask_RKS.any(1)
    if kind == "cosine":
        values = 1 - nn.functional.cosine_similarity(student, teacher, dim=-1)
        return values[:, carries].mean()
    pairs = zip(student, teacher, strict=True)
    return torch.stack([relative_error(one[carries], other[carries]) for one, other in pairs]).mean()


def relative_error(states: Tensor, targets: Tensor) -> Tensor:
    """The mean square of the error over that of the targets."""
    return (states - targets).square().mean() / targets.square().mean()
