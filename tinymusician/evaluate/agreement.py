"""Agreement of a model with its teacher along the teacher's samples.

All values are by clip, so that workers can share the clips and the bootstrap can resample them; KL is in nats per code,
the mean over a clip's codes.
Shapes: N clip, K codebook, S step of the delayed sequence, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinymusician.codebooks import valid
from tinymusician.models.divergences import Divergence, forward_kl, on_logits, reverse_kl
from tinymusician.runtime.sampling import guide

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """By clip and codebook, [N, K].

    `forward` is KL(teacher ‖ model), `reverse` KL(model ‖ teacher), `top_1` the share of equal most likely codes, all
    with guidance, before temperature and top-k. `with_text` is the forward KL of the conditional passes alone; it is
    NaN for a model with one pass.
    """

    forward: Floats
    reverse: Floats
    top_1: Floats
    with_text: Floats

    def arrays(self) -> dict[str, Floats]:
        """By name."""
        return dict(self.__dict__)


def agreement(teacher_2NKSV: Tensor, model_RKSV: Tensor, guidance: float) -> Agreement:
    """The agreement of the teacher's two passes with a model's two passes, or with its one pass."""
    clips, num_codebooks, steps = teacher_2NKSV.shape[0] // 2, *teacher_2NKSV.shape[1:3]
    mask = torch.from_numpy(valid(num_codebooks, steps - num_codebooks + 1)).expand(clips, -1, -1)
    one_pass = len(model_RKSV) == clips
    model = model_RKSV if one_pass else _guided(model_RKSV, guidance)
    teacher = _guided(teacher_2NKSV, guidance)
    same = (teacher.argmax(-1) == model.argmax(-1)).double()
    plain = torch.full((clips, num_codebooks, steps), torch.nan, dtype=torch.double)
    if not one_pass:
        plain = _values(forward_kl, teacher_2NKSV[:clips], model_RKSV[:clips], mask)
    measures = (_values(forward_kl, teacher, model, mask), _values(reverse_kl, teacher, model, mask), same, plain)
    return Agreement(*(_mean_by_codebook(values, mask) for values in measures))


def _guided(logits_2NKSV: Tensor, guidance: float) -> Tensor:
    conditional, unconditional = logits_2NKSV.float().chunk(2)
    return guide(conditional, unconditional, guidance)


def _values(divergence: Divergence, teacher: Tensor, model: Tensor, mask: Tensor) -> Tensor:
    return on_logits(divergence, teacher.float(), model.float(), mask).double()


def _mean_by_codebook(values_NKS: Tensor, mask_NKS: Tensor) -> Floats:
    masked = torch.where(mask_NKS, values_NKS, 0.0)
    return np.asarray((masked.sum(-1) / mask_NKS.sum(-1)).numpy())
