"""Samples codes from a MusicGen in PyTorch, with a cache, and with the engine's guidance and draws.

Greedy codes equal those of transformers' `MusicgenForConditionalGeneration.generate`, step by step. Unlike `generate`,
this returns the codes, and draws from its own generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinymusician.codebooks import undelay, valid
from tinymusician.errors import ModelError
from tinymusician.models.musicgen import TextCondition
from tinymusician.models.protocols import Musicgen
from tinymusician.runtime.sampling import SamplingParams, draw, guide, random_stream


@torch.no_grad()
def sample_codes(
    model: Musicgen,
    text: TextCondition,
    frames: int,
    generator: torch.Generator | None,
    guidance: float = 3.0,
    top_k: int = 250,
    temperature: float = 1.0,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Codes [B, K, frames] for each row of `text`; greedy without a generator or seeds.

    With `guidance` 1 only the conditional pass runs. With `seeds`, each row has the random numbers that the engine uses
    for its seed: a row does not depend on the others, and a bundle generates the same up to rounding.

    Raises:
        ModelError: logits are not finite.
    """
    numbers = _numbers(rows := len(text.states), generator, seeds)
    num_codebooks, pad = model.decoder.config.num_codebooks, model.decoder.config.vocab_size
    both = _with_null(text) if guidance != 1 else text
    states, mask = _project(model, both), both.mask
    carries = torch.from_numpy(valid(num_codebooks, frames)).to(states.device)
    sampling = SamplingParams(temperature if numbers else 0, top_k)
    delayed = torch.full((rows, num_codebooks, carries.shape[1]), pad, device=states.device)
    column, past = torch.full((rows, num_codebooks), pad, device=states.device), None
    for step in range(carries.shape[1]):
        copies = column.repeat(len(states) // rows, 1)
        output = model.decoder(
            input_ids=copies.reshape(-1, 1),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            past_key_values=past,
            use_cache=True,
        )
        past = output.past_key_values
        logits = _guided(output.logits[:, -1].view(len(states), num_codebooks, -1).float(), rows, guidance)
        column = torch.where(carries[:, step], _drawn(logits, numbers, sampling), pad)
        delayed[:, :, step] = column
    return torch.from_numpy(undelay(delayed.cpu().numpy()))


def _guided(logits_PKV: Tensor, rows: int, guidance: float) -> Tensor:
    """The logits [rows, K, V] that codes are drawn from, of one pass or two."""
    logits = logits_PKV if guidance == 1 else guide(logits_PKV[:rows], logits_PKV[rows:], guidance)
    if not torch.isfinite(logits).all():
        raise ModelError("sampling: the decoder gave no finite numbers; its weights are not usable")
    return logits


Numbers = Callable[[int], npt.NDArray[np.float64]]
"""The uniform random numbers of a step: for K codebooks, [B, K]."""


def _numbers(rows: int, generator: torch.Generator | None, seeds: Sequence[int] | None) -> Numbers | None:
    if seeds is not None:
        assert len(seeds) == rows, "one seed a row"
        generators = [random_stream(seed) for seed in seeds]
        return lambda num_codebooks: np.stack([row.random(num_codebooks) for row in generators])
    if generator is None:
        return None
    device = generator.device
    return lambda num_codebooks: (
        torch.rand((rows, num_codebooks), generator=generator, device=device).double().cpu().numpy()
    )


def _drawn(logits_BKV: Tensor, numbers: Numbers | None, sampling: SamplingParams) -> Tensor:
    """Sample with the engine's `draw`."""
    num_codebooks = logits_BKV.shape[1]
    uniforms = numbers(num_codebooks) if numbers is not None else np.zeros(logits_BKV.shape[:-1])
    return torch.from_numpy(draw(logits_BKV.cpu().numpy(), uniforms, sampling)).to(logits_BKV.device)


def decode_audio(model: Musicgen, codes_BKT: Tensor) -> Tensor:
    """Decode codes with the model's codec: a wave [B, N]."""
    with torch.no_grad():
        wave: Tensor = model.audio_encoder.decode(codes_BKT[None], [None]).audio_values[:, 0]
    return wave


def _with_null(text: TextCondition) -> TextCondition:
    null = text.without_text()
    return TextCondition(torch.cat([text.states, null.states]), torch.cat([text.mask, null.mask]))


def _project(model: Musicgen, text: TextCondition) -> Tensor:
    project = getattr(model, "enc_to_dec_proj", None)
    states = project(text.states) if project is not None else text.states
    projected: Tensor = states * text.mask[..., None].to(states.dtype)
    return projected
