"""Teacher signals: rows of a sequence set in, the teacher's logits on them out.

The objective sees signals only, never a model, so it does not matter where the teacher runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from tinymusician.codebooks import delay, inputs_for, valid
from tinymusician.data.tokens import TokenDataset
from tinymusician.models.conditional_decoder import ConditionedDecoder, TextCondition, encode_text
from tinymusician.models.half_precision import halve_layers
from tinymusician.models.protocols import Musicgen
from tinymusician.runtime.sampling import guide

Rows = npt.NDArray[np.int64]
Target = Literal["conditional", "guided"]


class DecoderBatch(NamedTuple):
    """Delayed decoder `inputs` [R, K, S], their `mask` [R, K, S], text `ids` and `text_mask` [R, L].

    `with_text` [R] is false for rows that run under the null condition. `scale` [R] is for a guidance-conditioned
    student.
    """

    inputs: Tensor
    mask: Tensor
    ids: Tensor
    text_mask: Tensor
    with_text: Tensor
    scale: Tensor


class TeacherSignals(NamedTuple):
    """Sequences, the teacher's logits [R, K, S, V] on them, and its hidden states [N, R, S, D] if requested."""

    sequences: DecoderBatch
    logits: Tensor
    states: Tensor | None = None


def concat_signals(one: TeacherSignals, other: TeacherSignals) -> TeacherSignals:
    """The rows of both."""
    both = (torch.cat(pair) for pair in zip(one.sequences, other.sequences, strict=True))
    states = None
    if one.states is not None and other.states is not None:
        states = torch.cat([one.states, other.states], 1)
    return TeacherSignals(DecoderBatch(*both), torch.cat([one.logits, other.logits]), states)


class SignalSource(Protocol):
    """A source of signals for the rows of a sequence set."""

    @property
    def prefetch(self) -> int:
        """The number of future batches that it can prefetch."""

    def __call__(self, rows: Rows, then: Sequence[Rows] = ()) -> TeacherSignals:
        """The signals of these rows; two rows each, with and without text, if the target is `conditional`.

        `then` are the next batches.
        """


class SignalSet(NamedTuple):
    """A source of signals, and the number of rows that it has."""

    source: SignalSource
    rows: int


class PrefetchingSource:
    """Starts slow requests early: those for at most `prefetch` announced batches, and for the current one."""

    def __init__(self, request: Callable[[Rows], Callable[[], TeacherSignals]], prefetch: int) -> None:
        """`request` starts a request, and returns a function that waits for its result."""
        self._request, self.prefetch = request, prefetch
        self._begun: dict[bytes, Callable[[], TeacherSignals]] = {}

    def __call__(self, rows: Rows, then: Sequence[Rows] = ()) -> TeacherSignals:
        for one in (rows, *then[: self.prefetch]):
            if one.tobytes() not in self._begun:
                self._begun[one.tobytes()] = self._request(one)
        return self._begun.pop(rows.tobytes())()


def sequences_of(tokens: TokenDataset, rows: Rows, target: Target, pad: int) -> DecoderBatch:
    """Rows of a token set as decoder inputs, doubled for the pass without text if the target is `conditional`."""
    codes = tokens.codes[rows].astype(np.int64)
    inputs = torch.from_numpy(inputs_for(delay(codes, pad), pad))
    mask = torch.from_numpy(valid(codes.shape[1], codes.shape[2])).expand(len(rows), -1, -1)
    ids, text_mask = torch.from_numpy(tokens.text_ids[rows]), torch.from_numpy(tokens.text_mask[rows])
    with_text = torch.ones(len(rows), dtype=torch.bool)
    one = DecoderBatch(inputs, mask, ids, text_mask, with_text, torch.ones(len(rows)))
    if target == "guided":
        return one
    both = DecoderBatch(*(torch.cat([part, part]) for part in one))
    return both._replace(with_text=torch.cat([with_text, ~with_text]))


def guided_at(signals: TeacherSignals, scale_R: Tensor) -> TeacherSignals:
    """One pass out of two, 2R rows: each row's distribution at its guidance scale."""
    with_text, without = signals.logits.float().chunk(2)
    scale = scale_R.to(with_text.device)
    logits = guide(with_text, without, scale[:, None, None, None])
    rows = DecoderBatch(*(part[: len(scale)] for part in signals.sequences))
    states = None if signals.states is None else signals.states[:, : len(scale)]
    return TeacherSignals(rows._replace(scale=scale), logits, states)


def condition(model: Musicgen, sequences: DecoderBatch) -> TextCondition:
    """The text condition of each row, by `model`'s frozen text encoder; null for rows without text."""
    with torch.no_grad():
        return encode_text(model, sequences.ids, sequences.text_mask).dropped(~sequences.with_text)


class OnlineTeacher:
    """A frozen teacher in this process, outside of the student's engine."""

    prefetch = 0

    def __init__(
        self,
        model: Musicgen,
        tokens: TokenDataset,
        target: Target,
        guidance: float,
        dtype: torch.dtype,
        layers: Sequence[int] = (),
    ) -> None:
        """`dtype` is the precision of its layers' products; the states after `layers` are returned as well.

        In bfloat16, the model's layers are rounded for good: half the memory, and no copies while it computes.
        """
        if dtype == torch.bfloat16:
            halve_layers(model)
        self._layers = layers
        self._model, self._decoder = model, ConditionedDecoder(model).eval()
        self._tokens, self._target, self._guidance, self._dtype = tokens, target, guidance, dtype
        self._pad = int(model.config.decoder.vocab_size)

    @torch.no_grad()
    def __call__(self, rows: Rows, then: Sequence[Rows] = ()) -> TeacherSignals:
        sequences = self._moved(sequences_of(self._tokens, rows, "conditional", self._pad))
        signals = self._compute(sequences)
        if self._target == "conditional":
            return signals
        return guided_at(signals, torch.full((len(rows),), self._guidance))

    def _compute(self, sequences: DecoderBatch) -> TeacherSignals:
        text = condition(self._model, sequences)
        half, kind = self._dtype != torch.float32, text.states.device.type
        with torch.autocast(kind, self._dtype, enabled=half, cache_enabled=False):
            if not self._layers:
                return TeacherSignals(sequences, self._decoder(sequences.inputs, text.states, text.mask))
            logits, states = self._decoder.with_states(sequences.inputs, text.states, text.mask)
        return TeacherSignals(sequences, logits, torch.stack([states[layer] for layer in self._layers]))

    def _moved(self, sequences: DecoderBatch) -> DecoderBatch:
        device = next(self._decoder.parameters()).device
        return DecoderBatch(*(part.to(device) for part in sequences))


class TensorParallelTeacher:
    """A teacher split over the workers of `group`: each worker has its own rows, and all compute all of them.

    Rows that several workers request are computed once.
    """

    prefetch = 0

    def __init__(self, teacher: SignalSource, group: dist.ProcessGroup) -> None:
        self._teacher, self._group = teacher, group

    def __call__(self, rows: Rows, then: Sequence[Rows] = ()) -> TeacherSignals:
        """All workers of the group must call this."""
        gathered: list[Rows] = [rows] * self._group.size()
        dist.all_gather_object(gathered, rows, self._group)
        mine = None
        for each in {one.tobytes(): one for one in gathered}.values():
            signals = self._teacher(each)
            mine = signals if np.array_equal(each, rows) else mine
        assert mine is not None, "a worker is one of its group"
        return mine
