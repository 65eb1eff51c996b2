"""Fine-tunes an audio encoder on a corpus' labels, as MATPAC++ is fine-tuned on AudioSet's before TinyMU uses it.

Linear heads read the encoder's vectors: of their mean, one head for each attribute of the clip; of each vector, the
pitch that sounds, and the frames in which notes begin. So attributes, pitches and onsets become linear
functions of the vectors that the language model reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinymusician.models.audio_encoder import AudioEncoder
from tinymusician.models.spectral_front_end import Scale
from tinymusician.training.task import Model, to_device
from tinymusician.understand.spectra import Spectra

Labels = npt.NDArray[np.int64]
IGNORE_INDEX = -100
"""The label of an attribute that a clip does not have; it adds nothing to the loss."""


@dataclass(frozen=True)
class LabelledSpectra:
    """Clips [N, C, 80, F], the class of every attribute, [N, attributes], and what is in every time step.

    That is the pitch, [N, T], and whether a note begins in each of its frames, [N, T, 8].
    """

    spectra: Spectra
    labels: Labels
    steps: Labels
    onsets: Labels


class AttributeBatch(NamedTuple):
    """The clips of a microbatch and their labels."""

    spectra: Tensor
    labels: Tensor
    steps: Tensor
    onsets: Tensor


class AttributeLogits(NamedTuple):
    """By attribute [B, classes], and by time step: pitches [B, T, step classes], onsets [B, T, 8]."""

    attributes: dict[str, Tensor]
    steps: Tensor
    onsets: Tensor


class AttributeModule(nn.Module):
    """An encoder with linear heads."""

    def __init__(self, encoder: AudioEncoder, classes: Mapping[str, int], num_pitch_classes: int, frames: int) -> None:
        super().__init__()
        width = encoder.shape.output_width
        self.encoder = encoder
        self.heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in classes.items()})
        self.pitch_head = nn.Linear(width, num_pitch_classes)
        self.onset_head = nn.Linear(width, frames)

    def forward(self, spectra_BCFT: Tensor) -> AttributeLogits:
        vectors = self.encoder.encode(spectra_BCFT)
        mean = vectors.mean(1)
        attributes = {name: head(mean) for name, head in self.heads.items()}
        return AttributeLogits(attributes, self.pitch_head(vectors), self.onset_head(vectors))


class AttributeTask:
    """The mean cross-entropy over the attributes, plus those of the time steps' pitches and of their onsets.

    Levels vary by up to 6 dB.

    All classes of an attribute have the same weight in its loss and in its held-out accuracy: nine of ten tunes are in
    major keys, but only half of the questions about the mode have that answer.
    """

    def __init__(
        self,
        encoder: AudioEncoder,
        classes: Mapping[str, int],
        num_pitch_classes: int,
        train: LabelledSpectra,
        held_out: LabelledSpectra,
        batch_size: int,
        seed: int,
    ) -> None:
        self.module = AttributeModule(encoder, classes, num_pitch_classes, train.onsets.shape[-1])
        self.names = tuple(classes)
        self.train, self.held_out = train, held_out
        self.batch_size, self.seed = batch_size, seed
        self._weights = {
            name: class_weights(train.labels[:, index], classes[name]) for index, name in enumerate(self.names)
        }

    def rows(self, step: int, part: int, parts: int) -> npt.NDArray[np.int64]:
        """Random clips."""
        return self._draw(step, part, parts)[0]

    def batch(self, step: int, part: int, parts: int) -> AttributeBatch:
        """The clips of a microbatch; a change of level is a constant in a log spectrum."""
        rows, rng = self._draw(step, part, parts)
        clips = self._read(self.train, rows)
        stds = np.array([scale.std for scale in self._scales()], np.float32)
        decibels = rng.uniform(-6, 6, (len(rows), 1, 1, 1)).astype(np.float32)
        shift = torch.from_numpy(decibels * np.log(10) / 10 / stds[None, :, None, None])
        return clips._replace(spectra=clips.spectra + shift.float())

    def loss(
        self, model: Model, batch: AttributeBatch, step: int, diagnostics: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """In nats."""
        losses = self._losses(model(batch.spectra), batch)
        return self._total(losses), {name: value.detach() for name, value in losses.items()}

    def validate(self, model: Model) -> dict[str, float]:
        """The held-out loss, the balanced accuracy of every attribute that clips have, the share of right pitches.

        `onsets` is the F1 score of the frames in which notes begin.
        """
        device = next(self.module.parameters()).device
        count = len(self.held_out.spectra)
        parts = np.array_split(np.arange(count), -(-count // self.batch_size))
        logits = [model(to_device(self._read(self.held_out, rows), device).spectra) for rows in parts]
        attributes = {name: torch.cat([each.attributes[name] for each in logits]) for name in self.names}
        steps, onsets = (torch.cat([getattr(each, name) for each in logits]) for name in ("steps", "onsets"))
        whole = AttributeLogits(attributes, steps, onsets)
        truth = to_device(self._read(self.held_out, np.arange(count)), device)
        figures = {"loss": self._total(self._losses(whole, truth)).item()}
        for index, name in enumerate(self.names):
            if (truth.labels[:, index] != IGNORE_INDEX).any():
                figures[name] = _balanced_accuracy(attributes[name], truth.labels[:, index])
        figures["onsets"] = _f1(onsets > 0, truth.onsets > 0)
        return {**figures, "steps": _accuracy(steps.flatten(0, 1), truth.steps.flatten())}

    def _losses(self, logits: AttributeLogits, batch: AttributeBatch) -> dict[str, Tensor]:
        losses = {
            name: F.cross_entropy(
                values.float(), labels, self._weights[name].to(labels.device), ignore_index=IGNORE_INDEX
            )
            for name, values, labels in zip(self.names, logits.attributes.values(), batch.labels.unbind(1), strict=True)
            if (labels != IGNORE_INDEX).any()
        }
        steps = F.cross_entropy(logits.steps.flatten(0, 1).float(), batch.steps.flatten(), ignore_index=IGNORE_INDEX)
        onsets = F.binary_cross_entropy_with_logits(logits.onsets.float(), batch.onsets.float())
        return {**losses, "steps": steps, "onsets": onsets}

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        attributes = [value for name, value in losses.items() if name not in ("steps", "onsets")]
        return torch.stack(attributes).mean() + losses["steps"] + losses["onsets"]

    def _draw(self, step: int, part: int, parts: int) -> tuple[npt.NDArray[np.int64], np.random.Generator]:
        rng = np.random.default_rng((self.seed, step, part, parts))
        return rng.integers(0, len(self.train.spectra), self.batch_size), rng

    def _scales(self) -> list[Scale]:
        front_end = self.module.encoder.shape.front_end
        return [scale for scale in (front_end.mel, front_end.pitch) if scale is not None]

    def _read(self, clips: LabelledSpectra, rows: npt.NDArray[np.int64]) -> AttributeBatch:
        spectra = torch.from_numpy(np.asarray(clips.spectra[rows], np.float32))
        labels = (torch.from_numpy(values[rows]) for values in (clips.labels, clips.steps, clips.onsets))
        return AttributeBatch(spectra, *labels)


def class_weights(labels: Labels, classes: int) -> Tensor:
    """The weight of each class, [classes], with which all have the same share of the labels; 1 for one without any."""
    counts = np.bincount(labels[labels != IGNORE_INDEX], minlength=classes)
    share = np.divide(counts.sum(), np.count_nonzero(counts) * counts, out=np.ones(classes), where=counts > 0)
    return torch.from_numpy(share.astype(np.float32))


def _f1(chosen: Tensor, truth: Tensor) -> float:
    """2 true positives / (chosen + true); 0 without any."""
    both = (chosen & truth).sum().item()
    return 2 * both / max(1, chosen.sum().item() + truth.sum().item())


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    is_labelled = labels != IGNORE_INDEX
    return (logits[is_labelled].argmax(-1) == labels[is_labelled]).float().mean().item()


def _balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """The mean over the classes of the share of its clips that are given it."""
    classes = torch.bincount(labels[labels != IGNORE_INDEX]).nonzero()[:, 0]
    chosen = logits.argmax(-1)
    return torch.stack([(chosen[labels == each] == each).float().mean() for each in classes]).mean().item()
