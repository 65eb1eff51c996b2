"""Teacher-forced rollouts: the same sequences through any decoder, step by step, and how far two differ.

Shapes: R row (each sequence with its text, then maybe each without), K codebook, S step of the delayed sequence,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tinymusician.codebooks import delay, inputs_for, valid
from tinymusician.runtime.decoder import CrossAttentionKV
from tinymusician.runtime.generator import MusicGenerator

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ForcedBatch:
    """Prompts, and codes [N, K, T] to be forced under each of them.

    With `null` they are also forced without text, as guidance needs it. `scales` are what a model that is told its
    guidance is told with each.
    """

    prompts: list[str]
    codes: npt.NDArray[np.int64]
    null: bool = True
    scales: tuple[float, ...] | None = None

    def text(self, player: MusicGenerator, row: int) -> CrossAttentionKV:
        """What a player's decoder attends to along one of them."""
        return player.text(self.prompts[row], None if self.scales is None else self.scales[row])


@dataclass(frozen=True)
class LogitDiff:
    """How a decoder differs from the one it should equal, at every step and codebook, [S, K], mean over the rows.

    `kl` is in nats, `agreement` the share of equal top codes, `gap` the largest difference of two logits. Where the
    delay pattern holds no code all three are NaN; logits that are no numbers are infinitely far off.
    """

    kl: npt.NDArray[np.float64]
    agreement: npt.NDArray[np.float64]
    gap: npt.NDArray[np.float64]

    @property
    def by_codebook(self) -> list[float]:
        """Each codebook's mean KL."""
        return [float(value) for value in np.nanmean(self.kl, axis=0)]


def rollout(player: MusicGenerator, sequences: ForcedBatch) -> Floats:
    """The decoder's logits along the sequences, [S, R, K, V]."""
    logits, _ = rollout_with_ranges(player, sequences)
    return logits


def rollout_with_ranges(player: MusicGenerator, sequences: ForcedBatch) -> tuple[Floats, list[tuple[Floats, Floats]]]:
    """The logits [S, R, K, V], and by layer the largest absolute key and value of each channel, [H, D] each."""
    decoder = player.decoder
    inputs = inputs_for(delay(sequences.codes, decoder.vocabulary), decoder.vocabulary)
    texts = [sequences.text(player, row) for row in range(len(sequences.prompts))]
    if sequences.null:
        texts, inputs = texts + [player.text.nothing()] * len(texts), np.concatenate([inputs, inputs])
    steps = inputs.shape[2]
    rows = decoder.add(texts, steps)
    logits = np.stack([decoder.step(inputs[:, :, step]).copy() for step in range(steps)])
    largest = [np.abs(buffer).max(axis=(0, 2)) for buffer in decoder.cache_arrays()]
    for row in reversed(rows):
        decoder.remove(row)
    return logits, list(zip(largest[0::2], largest[1::2], strict=True))


def compare(expected: Floats, actual: Floats) -> LogitDiff:
    """How `found` differs from `wanted`, both [S, R, K, V]."""
    steps, _, num_codebooks, _ = expected.shape
    kl, agreement, gap = (np.zeros((steps, num_codebooks)) for _ in range(3))
    for step in range(steps):
        log_p, log_q = _log_softmax(expected[step]), _log_softmax(actual[step])
        sound = np.isfinite(actual[step]).all(-1)
        kl[step] = np.where(sound, (np.exp(log_p) * (log_p - log_q)).sum(-1), np.inf).mean(0)
        agreement[step] = (sound & (log_p.argmax(-1) == log_q.argmax(-1))).mean(0)
        gap[step] = np.where(sound, np.abs(actual[step] - expected[step]).max(-1), np.inf).max(0)
    carries = valid(num_codebooks, steps - num_codebooks + 1).T
    return LogitDiff(*(np.where(carries, values, np.nan) for values in (kl, agreement, gap)))


def _log_softmax(z: Any) -> npt.NDArray[np.float64]:
    wide = z.astype(np.float64)
    with np.errstate(invalid="ignore"):
        wide = wide - wide.max(-1, keepdims=True)
        return np.asarray(wide - np.log(np.exp(wide).sum(-1, keepdims=True)))
