"""Teacher-forced rollouts: logits of a decoder along given sequences, and the difference of two such logits.

Shapes: R rows (each sequence with its text, then with `null` each without), K codebooks, S steps of the delayed
sequence, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinymusician.codebooks import delay, inputs_for, valid
from tinymusician.runtime.decoder import CrossAttentionKV
from tinymusician.runtime.generator import MusicGenerator
from tinymusician.runtime.sampling import guide
from tinymusician.runtime.softmax import log_softmax

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ForcedBatch:
    """Prompts, and the codes [N, K, T] to force under them.

    With `null`, the codes are also forced without text, as guidance needs, and `guidance` is the scale with which a
    sampler combines both. `scales` are the guidance scales of the sequences, for a guidance-conditioned model.
    """

    prompts: list[str]
    codes: npt.NDArray[np.int64]
    null: bool = True
    scales: tuple[float, ...] | None = None
    guidance: float = 1.0

    def sampled(self, logits: Floats) -> Floats:
        """The logits [S, N, K, V] that codes are sampled from, of those of all rows, [S, R, K, V]."""
        if not self.null:
            return logits
        conditional, unconditional = np.split(logits, 2, axis=1)
        return guide(conditional, unconditional, self.guidance)

    def text(self, generator: MusicGenerator, row: int) -> CrossAttentionKV:
        """The cross-attention of one sequence."""
        return generator.text(self.prompts[row], None if self.scales is None else self.scales[row])


@dataclass(frozen=True)
class LogitDiff:
    """The difference of a decoder's logits from the expected ones, per step and codebook, [S, K], mean over rows.

    `kl` is in nats; `agreement` is the share of equal most likely codes; `gap` is the largest absolute difference.
    All are NaN where the delay pattern has no code. Non-finite logits count as infinitely different.
    """

    kl: npt.NDArray[np.float64]
    agreement: npt.NDArray[np.float64]
    gap: npt.NDArray[np.float64]

    @property
    def by_codebook(self) -> list[float]:
        """The mean KL of each codebook."""
        return [float(value) for value in np.nanmean(self.kl, axis=0)]


def rollout(generator: MusicGenerator, sequences: ForcedBatch) -> Floats:
    """The decoder's logits along the sequences, [S, R, K, V], float32."""
    logits, _ = rollout_with_ranges(generator, sequences)
    return logits


def rollout_with_ranges(
    generator: MusicGenerator, sequences: ForcedBatch
) -> tuple[Floats, list[tuple[Floats, Floats]]]:
    """The logits [S, R, K, V], and per layer the largest absolute key and value of each channel, [H, D] each."""
    decoder = generator.decoder
    inputs = inputs_for(delay(sequences.codes, decoder.vocabulary), decoder.vocabulary)
    texts = [sequences.text(generator, row) for row in range(len(sequences.prompts))]
    if sequences.null:
        texts, inputs = texts + [generator.text.null()] * len(texts), np.concatenate([inputs, inputs])
    steps = inputs.shape[2]
    rows = decoder.add(texts, steps)
    logits = np.stack([decoder.step(inputs[:, :, step]).copy() for step in range(steps)])
    largest = [np.abs(buffer).max(axis=(0, 2)) for buffer in decoder.cache_arrays()]
    for row in reversed(rows):
        decoder.remove(row)
    return logits, list(zip(largest[0::2], largest[1::2], strict=True))


def compare(expected: Floats, actual: Floats) -> LogitDiff:
    """Compare logits, both [S, R, K, V]."""
    steps, _, num_codebooks, _ = expected.shape
    kl, agreement, gap = (np.zeros((steps, num_codebooks)) for _ in range(3))
    for step in range(steps):
        log_p, log_q = _log_probabilities(expected[step]), _log_probabilities(actual[step])
        sound = np.isfinite(actual[step]).all(-1)
        kl[step] = np.where(sound, (np.exp(log_p) * (log_p - log_q)).sum(-1), np.inf).mean(0)
        agreement[step] = (sound & (log_p.argmax(-1) == log_q.argmax(-1))).mean(0)
        gap[step] = np.where(sound, np.abs(actual[step] - expected[step]).max(-1), np.inf).max(0)
    carries = valid(num_codebooks, steps - num_codebooks + 1).T
    return LogitDiff(*(np.where(carries, values, np.nan) for values in (kl, agreement, gap)))


def _log_probabilities(logits: Floats) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # logits that are not finite
        return log_softmax(logits.astype(np.float64))
