"""Statistics of a student's own samples, and the distributions that it samples from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinymusician.data.tokens import TokenDataset
from tinymusician.distill.signals import DecoderBatch, condition
from tinymusician.models.conditional_decoder import ConditionedDecoder, encode_text, guidance_condition
from tinymusician.models.guidance import plays_in_one_pass, sampling_scale
from tinymusician.models.likelihood import code_entropies, cross_entropies, forced_logits
from tinymusician.models.protocols import Musicgen
from tinymusician.models.sampling import CodeSampler, sample_seed
from tinymusician.runtime.sampling import guide


class SampleStats(NamedTuple):
    """Means over a model's samples, in nats per code.

    `cross_entropy` is under the teacher, `code_entropy` that of the codes' frequencies.
    """

    cross_entropy: float
    code_entropy: float


@torch.no_grad()
def sample_stats(
    teacher: Musicgen,
    student: Musicgen,
    prompts: TokenDataset,
    guidance: float,
    top_k: int,
    temperature: float,
    seed: int,
    batch_size: int,
) -> SampleStats:
    """Sample the student freely, and score the samples with the teacher (with text, without guidance).

    `prompts` gives the texts and the length; its codes are not used. `batch_size` samples are in memory at a time, with
    their caches and logits. Cross-entropy alone can mislead: a student that falls into a loop is easy to predict. A
    code entropy near 0 shows that it did.
    """
    device = next(teacher.parameters()).device
    frames, passes = prompts.codes.shape[2], sampling_scale(student, guidance)
    sampler = CodeSampler(student)
    nlls, entropies = [], []
    for first in range(0, len(prompts.codes), batch_size):
        rows = slice(first, first + batch_size)
        ids, mask = (torch.from_numpy(part[rows]).to(device) for part in (prompts.text_ids, prompts.text_mask))
        text = guidance_condition(student, ids, mask, guidance)
        seeds = [sample_seed(seed, row) for row in range(first, first + len(ids))]
        codes = sampler.sample(text, frames, seeds, passes, top_k, temperature).numpy()
        logits, _ = forced_logits(teacher, encode_text(teacher, ids, mask), codes)
        nlls.append(np.asarray(cross_entropies(logits, codes).cpu()))
        entropies.append(code_entropies(codes))
    return SampleStats(float(np.concatenate(nlls).mean()), float(np.concatenate(entropies).mean()))


@torch.no_grad()
def sampling_logits(student: Musicgen, decoder: ConditionedDecoder, sequences: DecoderBatch) -> Tensor:
    """The logits [R, K, S, V] that a student samples from along sequences, at their guidance scales.

    A student with guidance in its weights needs one pass; another's two passes are combined.
    """
    text = condition(student, sequences)
    if plays_in_one_pass(student):
        logits: Tensor = decoder(sequences.inputs, text.states, text.mask, sequences.scale)
        return logits
    null = text.without_text()
    with_text, without = (decoder(sequences.inputs, each.states, each.mask) for each in (text, null))
    guided: Tensor = guide(with_text.float(), without.float(), sequences.scale[:, None, None, None])
    return guided
