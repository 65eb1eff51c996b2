"""On-policy distillation: the student also learns from the teacher's signals on its own samples.

Source: GKD (arXiv 2306.13649, algorithm 1), with the on-policy share a function of the step. The student samples for
`refresh` steps at once, which costs little more than sampling for one; so its samples are at most `refresh` steps old.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tinymusician.data.shards import ShardCache
from tinymusician.data.tokens import TokenDataset
from tinymusician.distill.signals import Rows, SignalSource, TeacherSignals
from tinymusician.models.conditional_decoder import TextCondition, guidance_condition
from tinymusician.models.protocols import Musicgen
from tinymusician.models.sampling import CodeSampler, sample_seed


@dataclass(frozen=True)
class SamplingOptions:
    """How a student samples: in two passes at `guidance`, or in `one_pass`; `batch_size` sequences at a time."""

    guidance: float
    one_pass: bool
    top_k: int
    temperature: float
    batch_size: int = 32


class OnPolicySampler:
    """A student's samples for the captions of a token set, scored by the teacher.

    The samples are cached shard by shard, so that a resumed run continues with the same ones.
    """

    def __init__(
        self,
        student: Musicgen,
        tokens: TokenDataset,
        signals_of: Callable[[TokenDataset], SignalSource],
        share_at: Callable[[int], float],
        refresh: int,
        steps: int,
        options: SamplingOptions,
        seed: int,
        cache: ShardCache,
    ) -> None:
        """`signals_of` gives the teacher's source of signals on other sequences; training ends at step `steps`."""
        self._student, self._tokens, self._signals_of, self._share_at = student, tokens, signals_of, share_at
        self._refresh, self._steps, self._cache, self._seed = refresh, steps, cache, seed
        self._options = options
        self._sources: dict[tuple[int, int], tuple[SignalSource, dict[int, Rows]]] = {}
        self.seconds = 0.0

    def count(self, step: int, rows: int) -> int:
        """The number of on-policy rows at a step, of `rows`."""
        return round(self._share_at(step) * rows)

    def __call__(self, step: int, part: int, parts: int, rows_at: Callable[[int], Rows]) -> TeacherSignals:
        """The signals at `step`; `rows_at` gives the rows whose captions this part samples from at a step."""
        first = step - step % self._refresh
        if (first, part) not in self._sources:
            self._sources = {key: value for key, value in self._sources.items() if key[0] == first}
            self._sources[first, part] = self._sampled(first, part, parts, rows_at)
        source, rows = self._sources[first, part]
        return source(rows[step])

    def _sampled(
        self, first: int, part: int, parts: int, rows_at: Callable[[int], Rows]
    ) -> tuple[SignalSource, dict[int, Rows]]:
        """The source of signals on a part's samples from step `first` on, and each step's rows among them."""
        began = time.monotonic()
        rows = {step: rows_at(step) for step in range(first, min(first + self._refresh, self._steps))}
        ends = np.cumsum([len(indices) for indices in rows.values()])
        positions = {
            step: np.arange(end - len(indices), end) for (step, indices), end in zip(rows.items(), ends, strict=True)
        }
        prompts = self._tokens.select(np.concatenate(list(rows.values())))
        index = first // self._refresh * parts + part
        if index in self._cache.missing():
            seeds = [sample_seed(self._seed, step, int(row)) for step, indices in rows.items() for row in indices]
            self._cache.write(index, {"codes": self._sample(prompts, seeds)})
        tokens = TokenDataset(self._cache.read(index)["codes"], prompts.text_ids, prompts.text_mask)
        self.seconds += time.monotonic() - began
        return self._signals_of(tokens), positions

    @torch.no_grad()
    def _sample(self, prompts: TokenDataset, seeds: list[int]) -> npt.NDArray[np.int16]:
        options, weight = self._options, next(self._student.decoder.parameters())
        ids, mask = (torch.from_numpy(array).to(weight.device) for array in (prompts.text_ids, prompts.text_mask))
        frames, passes = prompts.codes.shape[2], 1.0 if options.one_pass else options.guidance
        sampler, codes = CodeSampler(self._student), []
        for first in range(0, len(ids), options.batch_size):
            batch = slice(first, first + options.batch_size)
            text = guidance_condition(self._student, ids[batch], mask[batch], options.guidance)
            text = TextCondition(text.states.to(weight.dtype), text.mask)
            codes.append(sampler.sample(text, frames, seeds[batch], passes, options.top_k, options.temperature))
        result: npt.NDArray[np.int16] = torch.cat(codes).cpu().numpy().astype(np.int16)
        return result
