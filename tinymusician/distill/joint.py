"""Joint tuning: text encoder, language model and codec are trained together, with all their losses.

Beside the objective and the component losses (text_distill.py, codec_distill.py) one loss reaches through all three:
`audio`, the spectral distance between the audio of the student's expected latents, E_q[latent], and that of the
teacher's, E_p[latent], each by its own decoder. Sampled codes pass no gradient; their expectation does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tinymusician.distill.balance import Method
from tinymusician.distill.codec_distill import (
    CodecDistillTask,
    CodecOutput,
    CodecTargets,
    ProjectedCodec,
    decode_latents,
    expected_latents,
)
from tinymusician.distill.component import ComponentTask
from tinymusician.distill.signals import DecoderBatch, TeacherSignals
from tinymusician.distill.task import DistillTask
from tinymusician.distill.text_distill import state_error
from tinymusician.models.conditional_decoder import ConditionedDecoder, TextCondition
from tinymusician.models.protocols import Codec, TextEncoderModel
from tinymusician.models.prune_width_text import ProjectedTextEncoder
from tinymusician.models.spectral import spectral_distance
from tinymusician.training.task import Model

_AUDIO_STREAM = 1
"""The random stream of the positions of `audio`, apart from that of the codec's pieces."""


class JointBatch(NamedTuple):
    """Signals for the language model, `codes` [B, K, T] for the codec, and the first frame of `audio`."""

    signals: TeacherSignals
    codes: Tensor
    start: int


class JointOutput(NamedTuple):
    """The language model's `logits`, the mapped text `states`, the codec's `sound`, and the `audio` [R, N]."""

    logits: Tensor
    states: Tensor
    sound: tuple[CodecOutput, Tensor]
    audio: Tensor


class JointTargets(NamedTuple):
    """The targets: text `states` [R, L, E], the codec's, and the teacher's `audio` [R, N]."""

    states: Tensor
    sound: CodecTargets
    audio: Tensor


class JointStudent(nn.Module):
    """Language model, text encoder and codec as one module; the text encoder's map is for its own loss only."""

    def __init__(
        self, decoder: ConditionedDecoder, text: ProjectedTextEncoder, codec: ProjectedCodec, frames: int
    ) -> None:
        """The `audio` loss has so many `frames`."""
        super().__init__()
        self.decoder, self.text, self.codec, self._frames = decoder, text, codec, frames

    def forward(self, sequences: DecoderBatch, start: int, latent_BDT: Tensor, wave_BN: Tensor) -> JointOutput:
        """Sequences for the language model; latents and their wave for the codec."""
        ids, mask = sequences.ids, sequences.text_mask
        states = self.text.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        text = TextCondition(states, mask).dropped(~sequences.with_text)
        logits = self.decoder(sequences.inputs, text.states, text.mask, sequences.scale)
        audio = decode_expected(self.codec.codec, logits, start, self._frames)
        return JointOutput(logits, self.text.to_teacher(states), self.codec(latent_BDT, wave_BN), audio)


def decode_expected(codec: Codec, logits_RKSV: Tensor, start: int, frames: int) -> Tensor:
    """The audio of the expected latents of so many frames from frame `start` on, [R, N]."""
    window = [logits_RKSV[:, book, book + start : book + start + frames] for book in range(logits_RKSV.shape[1])]
    return decode_latents(codec, expected_latents(codec, torch.stack(window, 1))).wave


class JointTask(ComponentTask):
    """All losses, balanced; validated by the mean of KL and spectral distance, each relative to its initial value."""

    def __init__(
        self,
        objective: DistillTask,
        text: ProjectedTextEncoder,
        sound: CodecDistillTask,
        teacher_text: TextEncoderModel,
        method: Method,
        device: str,
    ) -> None:
        """`text` and the codec of `sound` are those of the objective's student.

        `teacher_text` is the teacher's text encoder.
        """
        self.objective, self.sound, self._teacher_text = (
            objective,
            sound,
            teacher_text.to(device).eval().requires_grad_(False),
        )
        whole = JointStudent(objective.module, text, sound.codec, sound.frames)
        super().__init__(whole, method, objective.train.rows, objective.batch_size, objective.seed, device)
        self._at_first = self._figures()

    def batch(self, step: int, part: int, parts: int) -> JointBatch:
        """The objective's batch, and the codec's."""
        signals = self.objective.batch(step, part, parts)
        longest = int(signals.sequences.mask[0, 0].sum()) - self.sound.frames
        start = np.random.default_rng((self.seed, step, part, _AUDIO_STREAM)).integers(0, max(longest, 0) + 1)
        return JointBatch(signals, self.sound.batch(step, part, parts), int(start))

    def first_batch(self) -> JointBatch:
        """The first rows; later ones are not announced to their source."""
        rows = np.arange(min(self.batch_size, self.count))
        return JointBatch(self.objective.guided(self.objective.train.source(rows), 0, 0), self.sound.first_batch(), 0)

    def targets(self, batch: JointBatch) -> JointTargets:
        """The teacher's text states, its audio of the codes, and that of its expected latents."""
        sequences = batch.signals.sequences
        states = self._teacher_text(input_ids=sequences.ids, attention_mask=sequences.text_mask).last_hidden_state
        audio = decode_expected(self.sound.teacher, batch.signals.logits, batch.start, self.sound.frames)
        return JointTargets(states, self.sound.targets(batch.codes), audio)

    def inputs(self, batch: JointBatch, targets: JointTargets) -> tuple[Any, ...]:
        """Sequences, the position of `audio`, and the codec's inputs."""
        return batch.signals.sequences, batch.start, *self.sound.inputs(batch.codes, targets.sound)

    def losses(self, output: JointOutput, batch: JointBatch, targets: JointTargets) -> dict[str, Tensor]:
        """The objective, the text states, the codec's losses, and `audio`."""
        kl, _ = self.objective.objective(output.logits, batch.signals, 0, diagnostics=False)
        return {
            "kl": kl,
            "states": state_error(output.states, targets.states, batch.signals.sequences.text_mask),
            **self.sound.losses(output.sound, batch.codes, targets.sound),
            "audio": spectral_distance(output.audio, targets.audio, self.sound.teacher.config.sampling_rate),
        }

    def validate(self, model: Model) -> dict[str, float]:
        """The metrics of the objective and of the codec, and `whole`."""
        figures = self._figures()
        shares = [figures[name] / self._at_first[name] for name in ("kl", "spectral")]
        return {**figures, "whole": sum(shares) / len(shares)}

    @torch.no_grad()
    def _figures(self) -> dict[str, float]:
        self.part.eval()
        return self.objective.validate(self.objective.module) | self.sound.validate(self.sound.module)
