"""The training task of masked prediction: batches of spectra, losses, and the moving averages."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from tinymusician.models.audio_encoder import PATCH, PATCH_ROWS, AudioEncoder
from tinymusician.training.task import Model, to_device
from tinymusician.understand.masked_prediction import (
    MaskedPredictionConfig,
    MaskedPredictor,
    Prediction,
    class_loss,
    class_probabilities,
    prediction_loss,
    schedules,
)
from tinymusician.understand.spectra import Spectra

_HELD_OUT_CLIPS = 200


class PatchBatch(NamedTuple):
    """Normalized `spectra` [B, C, 80, F], F a multiple of 16, and each clip's random `order` of patches [B, P]."""

    spectra: Tensor
    order: Tensor


class MaskedPredictionTask:
    """Self-supervised training on clips of equal length, [N, C, 80, F]; a rest of less than 16 frames is left out."""

    def __init__(
        self,
        encoder: AudioEncoder,
        config: MaskedPredictionConfig,
        train: Spectra,
        held_out: Spectra,
        batch_size: int,
        seed: int,
    ) -> None:
        self.module = MaskedPredictor(encoder, config)
        self.config, self.train, self.held_out = config, train, held_out
        self.batch_size, self.seed = batch_size, seed
        self._started = -1

    def rows(self, step: int, part: int, parts: int) -> npt.NDArray[np.int64]:
        """Random clips."""
        return np.random.default_rng((self.seed, step, part, parts)).integers(0, len(self.train), self.batch_size)

    def batch(self, step: int, part: int, parts: int) -> PatchBatch:
        """The clips of a microbatch, with random orders."""
        return self._read(self.train, self.rows(step, part, parts), (self.seed, step, part, parts))

    def loss(
        self, model: Model, batch: PatchBatch, step: int, diagnostics: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Prediction and classification, weighted; the teachers move once per step, before it."""
        is_first, self._started = step != self._started, step
        if is_first:
            self.module.begin_step(step)
        prediction: Prediction = model(*batch)
        losses, probabilities = self._losses(prediction, step)
        if is_first:
            self.module.end_first_microbatch(_of_first_worker(probabilities.flatten(0, -2).mean(0)))
        return self._total(losses), {name: value.detach() for name, value in losses.items()}

    def validate(self, model: Model) -> dict[str, float]:
        """The losses of held-out clips in fixed orders, with the last step's temperatures, and the targets' spread.

        `target_std` is the mean standard deviation of the unit targets' channels: it falls to 0 in a collapse.
        """
        rows = np.arange(min(_HELD_OUT_CLIPS, len(self.held_out)))
        device = next(self.module.parameters()).device
        batch = to_device(self._read(self.held_out, rows, (self.seed,)), device)
        prediction: Prediction = model(*batch)
        losses, _ = self._losses(prediction, self.config.steps)
        unit = torch.nn.functional.normalize(prediction.target.float(), dim=-1).flatten(0, 1)
        figures = {"loss": self._total(losses), "target_std": unit.std(0).mean(), **losses}
        return {name: value.item() for name, value in figures.items()}

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        weight = self.config.class_loss_weight
        return (1 - weight) * losses["prediction"] + weight * losses["classification"]

    def _losses(self, prediction: Prediction, step: int) -> tuple[dict[str, Tensor], Tensor]:
        config, values = self.config, schedules(self.config, step)
        probabilities = class_probabilities(prediction.class_target, self.module.center, values.teacher_temperature)
        losses = {
            "prediction": prediction_loss(
                prediction.hypotheses, prediction.target, values.assignment_temperature, config.min_temperature
            ),
            "classification": class_loss(prediction.class_hypotheses, probabilities, config.student_temperature),
        }
        return losses, probabilities

    def _read(self, spectra: Spectra, rows: npt.NDArray[np.int64], seed: tuple[int, ...]) -> PatchBatch:
        columns = spectra.shape[-1] // PATCH
        clips = torch.from_numpy(np.asarray(spectra[rows, ..., : columns * PATCH], np.float32))
        noise = np.random.default_rng((*seed, 1)).random((len(rows), PATCH_ROWS * columns))
        return PatchBatch(clips, torch.from_numpy(noise.argsort(axis=1)))


def _of_first_worker(values: Tensor) -> Tensor:
    """The first worker's tensor: the centre then depends on the step's first microbatch only, on all workers."""
    values = values.detach().contiguous()
    if dist.is_initialized():
        dist.broadcast(values, 0)
    return values
