"""The student's own samples among the sequences it is compared on: it learns where its own playing leads it.

Source: GKD (arXiv 2306.13649, algorithm 1), with its on-policy share a function of the step. The student plays for
`refresh` steps together, which costs little more than playing for one; so its samples are at most so many steps old.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tinymusician.data.shards import ShardCache
from tinymusician.data.tokens import TokenDataset
from tinymusician.distill.signals import Rows, SignalSource, TeacherSignals
from tinymusician.models.musicgen import TextCondition, guidance_condition
from tinymusician.models.sampling import sample_codes


class OnPolicySampler:
    """What the student plays for the captions of a token set, judged by the teacher.

    Every sample is kept in `kept`, shard by shard, so that a run that is resumed goes on with the very same ones.
    """

    def __init__(
        self,
        student: Any,
        tokens: TokenDataset,
        judge: Callable[[TokenDataset], SignalSource],
        share_at: Callable[[int], float],
        refresh: int,
        steps: int,
        guidance: float,
        one_pass: bool,
        top_k: int,
        temperature: float,
        seed: int,
        cache: ShardCache,
        at_once: int = 32,
    ) -> None:
        """`judge` gives the teacher's source of signals on other sequences. `steps` is where training ends.

        At most `at_once` are played side by side. The student plays as it will be played: at `guidance` in two passes,
        or in one that has guidance within it.
        """
        self._student, self._tokens, self._judge, self._share_at = student, tokens, judge, share_at
        self._refresh, self._steps, self._cache, self._seed = refresh, steps, cache, seed
        self._at_once = at_once
        self._guidance, self._one_pass, self._top_k, self._temperature = guidance, one_pass, top_k, temperature
        self._judged: dict[tuple[int, int], tuple[SignalSource, dict[int, Rows]]] = {}
        self.seconds = 0.0

    def count(self, step: int, rows: int) -> int:
        """How many of so many rows are the student's own at a step."""
        return round(self._share_at(step) * rows)

    def __call__(self, step: int, part: int, parts: int, rows_at: Callable[[int], Rows]) -> TeacherSignals:
        """The signals at `step`; `rows_at` tells whose captions are played at a step, by this part."""
        first = step - step % self._refresh
        if (first, part) not in self._judged:
            self._judged = {key: value for key, value in self._judged.items() if key[0] == first}
            self._judged[first, part] = self._played(first, part, parts, rows_at)
        source, rows = self._judged[first, part]
        return source(rows[step])

    def _played(
        self, first: int, part: int, parts: int, rows_at: Callable[[int], Rows]
    ) -> tuple[SignalSource, dict[int, Rows]]:
        """The source of signals on a part's samples from step `first` on, and each step's places among them."""
        began = time.monotonic()
        rows = {step: rows_at(step) for step in range(first, min(first + self._refresh, self._steps))}
        ends = np.cumsum([len(indices) for indices in rows.values()])
        positions = {
            step: np.arange(end - len(indices), end) for (step, indices), end in zip(rows.items(), ends, strict=True)
        }
        prompts = self._tokens.taken(np.concatenate(list(rows.values())))
        index = first // self._refresh * parts + part
        if index in self._cache.missing():
            self._cache.write(index, {"codes": self._play(prompts, first, part)})
        tokens = TokenDataset(self._cache.read(index)["codes"], prompts.text_ids, prompts.text_mask)
        self.seconds += time.monotonic() - began
        return self._judge(tokens), positions

    @torch.no_grad()
    def _play(self, prompts: TokenDataset, first: int, part: int) -> Any:
        decoder = self._student.decoder
        weight = next(decoder.parameters())
        ids, mask = (torch.from_numpy(array).to(weight.device) for array in (prompts.text_ids, prompts.text_mask))
        seed = np.random.SeedSequence((self._seed, first, part)).generate_state(1)[0]
        generator = torch.Generator(weight.device).manual_seed(int(seed))
        trained = decoder.training
        frames, passes = prompts.codes.shape[2], 1.0 if self._one_pass else self._guidance
        decoder.eval()
        codes = []
        for batch_ids, batch_mask in zip(*(torch.split(each, self._at_once) for each in (ids, mask)), strict=True):
            text = guidance_condition(self._student, batch_ids, batch_mask, self._guidance)
            text = TextCondition(text.states.to(weight.dtype), text.mask)
            codes.append(sample_codes(self._student, text, frames, generator, passes, self._top_k, self._temperature))
        decoder.train(trained)
        return torch.cat(codes).cpu().numpy().astype(np.int16)
