"""Trains band-tagger: the attributes that a clip was rendered from are its labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from tinymusician.house_band.attributes import INSTRUMENTS, PITCH_CLASSES, TEMPI, ClipAttributes
from tinymusician.house_band.corpus import RenderedSplit
from tinymusician.house_band.tagger_model import BandTagger, Classes
from tinymusician.training.task import Model, to_device

KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in PITCH_CLASSES)
CLASSES: Classes = {"instrument": tuple(INSTRUMENTS), "tempo": tuple(TEMPI), "key": KEYS}
"""The questions, and their possible answers."""


def labels_of(facts: ClipAttributes) -> dict[str, int]:
    """The right answers, as class indices."""
    answers = {"instrument": facts.instrument, "tempo": facts.tempo, "key": facts.key}
    return {question: CLASSES[question].index(answer) for question, answer in answers.items()}


class TaggerBatch(NamedTuple):
    """`waves` [B, N], and the `labels` [B, questions] in the order of `CLASSES`."""

    waves: Tensor
    labels: Tensor


class TaggerTask:
    """Cross-entropy of every question's answer, summed."""

    def __init__(
        self, tagger: BandTagger, train: RenderedSplit, held_out: RenderedSplit, batch_size: int, seed: int
    ) -> None:
        self.module, self.train, self.held_out = tagger, train, held_out
        self.batch_size, self.seed = batch_size, seed

    def rows(self, step: int, part: int, parts: int) -> npt.NDArray[np.int64]:
        """Random clips."""
        return self._draw(step, part, parts)[0]

    def batch(self, step: int, part: int, parts: int) -> TaggerBatch:
        """The clips of a microbatch, at random levels."""
        rows, rng = self._draw(step, part, parts)
        clips = _read(self.train, rows)
        gains = torch.from_numpy(rng.uniform(0.5, 1.5, (self.batch_size, 1)).astype(np.float32))
        return TaggerBatch(clips.waves * gains, clips.labels)

    def _draw(self, step: int, part: int, parts: int) -> tuple[npt.NDArray[np.int64], np.random.Generator]:
        rng = np.random.default_rng((self.seed, step, part, parts))
        return rng.integers(0, len(self.train.clips), self.batch_size), rng

    def loss(
        self, model: Model, batch: TaggerBatch, step: int, diagnostics: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over the questions, in nats."""
        losses = {question: F.cross_entropy(*pair) for question, pair in _pairs(model(batch.waves), batch).items()}
        return torch.stack(list(losses.values())).sum(), {name: value.detach() for name, value in losses.items()}

    def validate(self, model: Model) -> dict[str, float]:
        """Held-out loss, and the share of right answers to every question."""
        device = next(self.module.parameters()).device
        totals: dict[str, float] = {}
        count = len(self.held_out.clips)
        for rows in np.array_split(np.arange(count), -(-count // self.batch_size)):
            batch = to_device(_read(self.held_out, rows), device)
            for question, (logits, labels) in _pairs(model(batch.waves), batch).items():
                figures = {
                    "loss": F.cross_entropy(logits, labels),
                    question: (logits.argmax(1) == labels).float().mean(),
                }
                for name, value in figures.items():
                    totals[name] = totals.get(name, 0.0) + value.item() * len(rows) / count
        return totals


def _pairs(logits: dict[str, Tensor], batch: TaggerBatch) -> dict[str, tuple[Tensor, Tensor]]:
    return {question: (logits[question], batch.labels[:, index]) for index, question in enumerate(CLASSES)}


def _read(split: RenderedSplit, rows: np.ndarray) -> TaggerBatch:
    labels = [[labels_of(split.clips[row].facts)[question] for question in CLASSES] for row in rows]
    return TaggerBatch(torch.from_numpy(split.audio(rows)), torch.tensor(labels))
