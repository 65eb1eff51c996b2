"""The likelihood of codes under a MusicGen, and their entropy: together they tell music from noise and from a loop.

Shapes: B clip, K codebook, T frame, S step of the delayed sequence, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from tinymusician.codebooks import delay, inputs_for, valid
from tinymusician.models.conditional_decoder import ConditionedDecoder, TextCondition
from tinymusician.models.protocols import Musicgen


@torch.no_grad()
def forced_logits(model: Musicgen, text: TextCondition, codes_BKT: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """The decoder's logits [B, K, S, V] along given codes, and the mask [B, K, S] of the steps that carry a code."""
    pad, device = model.config.decoder.vocab_size, text.states.device
    inputs = torch.from_numpy(inputs_for(delay(codes_BKT, pad), pad)).to(device)
    logits = ConditionedDecoder(model).eval()(inputs, text.states, text.mask)
    carries = torch.from_numpy(valid(codes_BKT.shape[1], codes_BKT.shape[2])).to(device)
    return logits, carries.expand(len(codes_BKT), -1, -1)


def cross_entropies(logits_BKSV: Tensor, codes_BKT: npt.NDArray[np.int64]) -> Tensor:
    """Each clip's mean negative log-likelihood under the logits of `forced_logits`, in nats per code, [B]."""
    num_codebooks, frames = codes_BKT.shape[1:]
    pad = logits_BKSV.shape[-1]
    targets = torch.from_numpy(delay(codes_BKT, pad)).to(logits_BKSV.device)
    carries = torch.from_numpy(valid(num_codebooks, frames)).to(targets.device)
    safe = torch.where(carries, targets, 0)
    nll = F.cross_entropy(logits_BKSV.float().flatten(0, 2), safe.flatten(), reduction="none").view(safe.shape)
    return (nll * carries).sum((1, 2)) / carries.sum()


def code_entropies(codes_BKT: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The entropy in nats of each clip's code frequencies, mean over codebooks, [B]: 0 for a loop of one code."""
    return np.array([np.mean([_entropy(book) for book in clip]) for clip in codes_BKT])


def _entropy(codes_T: npt.NDArray[np.int64]) -> float:
    share = np.bincount(codes_T) / len(codes_T)
    return float(-(share[share > 0] * np.log(share[share > 0])).sum())
