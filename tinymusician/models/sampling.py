"""Samples codes from a MusicGen in PyTorch, with the engine's guidance and random numbers.

Greedy codes equal those of transformers' `MusicgenForConditionalGeneration.generate`. Unlike `generate`, this returns
the codes, and each row has its own seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tinymusician.codebooks import undelay, valid
from tinymusician.errors import ModelError
from tinymusician.models.conditional_decoder import TextCondition
from tinymusician.models.decode_loop import DecodeLoop, DecodeShape
from tinymusician.models.decoder_weights import decoder_weights
from tinymusician.models.protocols import Musicgen
from tinymusician.runtime.sampling import SamplingParams, random_stream

INVARIANT_ROWS = 8
"""Products of matrices with a multiple of this number of rows give a row the same result, whatever the number is."""


class CodeSampler:
    """Samples from one model, whose weights must not change. Buffers and CUDA graphs of a batch serve the next one."""

    def __init__(self, model: Musicgen, dtype: torch.dtype | None = None, row_multiple: int = 1) -> None:
        """The layers' products run in `dtype`, by default that of the weights; heads and sums in float32.

        A batch is filled up to a multiple of `row_multiple` rows. With `INVARIANT_ROWS`, a row's codes do not depend on
        the size of its batch; otherwise codes whose chances differ by less than rounding may change places.
        """
        self._model, self._row_multiple = model, row_multiple
        self._weights = decoder_weights(model, dtype)
        self._loop: DecodeLoop | None = None

    @torch.no_grad()
    def sample(
        self,
        text: TextCondition,
        frames: int,
        seeds: Sequence[int] | None,
        guidance: float = 3.0,
        top_k: int = 250,
        temperature: float = 1.0,
    ) -> Tensor:
        """Codes [B, K, frames] on the CPU for each row of `text`, with a seed each; greedy without seeds.

        With `guidance` 1 only the conditional pass runs. A row has the random numbers that the engine uses for its
        seed: a bundle generates the same up to rounding.

        Raises:
            ModelError: logits are not finite.
        """
        num_codebooks, rows = self._weights.num_codebooks, len(text.states)
        text, row_seeds = _padded(text, seeds, self._row_multiple)
        carries = torch.from_numpy(valid(num_codebooks, frames).T)
        sampling = SamplingParams(0 if seeds is None else temperature, top_k)
        loop = self._loop_of(DecodeShape(len(text.states), len(carries), text.states.shape[1], guidance, sampling))
        uniforms = _uniforms(row_seeds, len(carries), num_codebooks) if row_seeds else torch.zeros(1)
        delayed = loop.run(_project(self._model, text), text.mask, carries, uniforms)
        if delayed is None:
            raise ModelError("sampling: the decoder gave no finite numbers; its weights are not usable")
        return torch.from_numpy(undelay(delayed[:rows].cpu().numpy()))

    def _loop_of(self, shape: DecodeShape) -> DecodeLoop:
        if self._loop is None or self._loop.shape != shape:
            self._loop = None  # frees its buffers before the next ones are allocated
            self._loop = DecodeLoop(self._weights, shape)
        return self._loop


def sample_codes(
    model: Musicgen,
    text: TextCondition,
    frames: int,
    seeds: Sequence[int] | None,
    guidance: float = 3.0,
    top_k: int = 250,
    temperature: float = 1.0,
) -> Tensor:
    """`CodeSampler.sample` for a single batch."""
    return CodeSampler(model).sample(text, frames, seeds, guidance, top_k, temperature)


def sample_seed(seed: int, *parts: object) -> int:
    """The seed, 0 to 2⁶³ - 1, of one of many samples, from a common seed and what tells this one apart."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def _padded(text: TextCondition, seeds: Sequence[int] | None, multiple: int) -> tuple[TextCondition, list[int]]:
    """A batch filled up with its last row to a multiple of `multiple` rows."""
    rows = len(text.states)
    index = torch.arange(-(-rows // multiple) * multiple).clamp(max=rows - 1)
    device = text.states.device
    padded = TextCondition(text.states[index.to(device)], text.mask[index.to(device)])
    return padded, [] if seeds is None else [seeds[row] for row in index.tolist()]


def _uniforms(seeds: Sequence[int], steps: int, num_codebooks: int) -> Tensor:
    """The uniform random number of each code, [S, B, K]: a row's depend on its seed, the step and the codebook."""
    rows = [random_stream(seed).random((steps, num_codebooks)) for seed in seeds]
    return torch.from_numpy(np.stack(rows, 1))


def decode_audio(model: Musicgen, codes_BKT: Tensor) -> Tensor:
    """Decode codes with the model's codec: a wave [B, N]."""
    with torch.no_grad():
        wave: Tensor = model.audio_encoder.decode(codes_BKT[None], [None]).audio_values[:, 0]
    return wave


def _project(model: Musicgen, text: TextCondition) -> Tensor:
    project = getattr(model, "enc_to_dec_proj", None)
    states = project(text.states) if project is not None else text.states
    projected: Tensor = states * text.mask[..., None].to(states.dtype)
    return projected
