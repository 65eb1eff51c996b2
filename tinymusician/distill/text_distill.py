"""Distils a text encoder: by its states, and by their effect on the teacher's decoder.

states   |P·h - H|² / |H|² over the text's tokens, with P the map to the teacher's width (as in hidden_states.py)
kl       forward KL from the teacher's distribution over codes to the one it has under P·h: the cost of an error in the
         states where cross-attention reads them (nats per code)
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinymusician.data.tokens import TokenDataset
from tinymusician.distill.balance import Method
from tinymusician.distill.component import ComponentTask
from tinymusician.distill.hidden_states import relative_error
from tinymusician.distill.least_squares import fit
from tinymusician.distill.objective import chunked
from tinymusician.distill.signals import DecoderBatch, Rows, sequences_of
from tinymusician.models.conditional_decoder import ConditionedDecoder, encode_text
from tinymusician.models.divergences import forward_kl, mean_over_valid
from tinymusician.models.protocols import Musicgen
from tinymusician.models.prune_width_text import ProjectedTextEncoder
from tinymusician.training.task import Model, to_device


def state_error(states_BLE: Tensor, targets_BLE: Tensor, mask_BL: Tensor) -> Tensor:
    """The relative error of the states of text tokens; padding is left out."""
    text = mask_BL.bool()
    return relative_error(states_BLE[text].float(), targets_BLE[text].float())


@torch.no_grad()
def fit_text(text: ProjectedTextEncoder, teacher: Musicgen, ids_BL: Tensor, mask_BL: Tensor) -> None:
    """Initialize a text encoder's map by least squares on these texts."""
    words = mask_BL.bool()
    states = text.encoder(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
    fit(text.to_teacher, states[words], encode_text(teacher, ids_BL, mask_BL).states[words])


class TextEncoderDistillTask(ComponentTask):
    """Trains a text encoder with its map; the teacher is frozen."""

    def __init__(
        self,
        text: ProjectedTextEncoder,
        teacher: Musicgen,
        tokens: TokenDataset,
        held_out: TokenDataset,
        method: Method,
        batch_size: int,
        seed: int,
        device: str,
    ) -> None:
        self.teacher, self.tokens, self.held_out = teacher.to(device).requires_grad_(False), tokens, held_out
        self._decoder = ConditionedDecoder(teacher).eval()
        super().__init__(text, method, len(tokens.codes), batch_size, seed, device)

    def batch(self, step: int, part: int, parts: int) -> DecoderBatch:
        """Sequences with their text."""
        return self._sequences(self.tokens, self.rows(step, part, parts))

    def targets(self, batch: DecoderBatch) -> tuple[Tensor, Tensor]:
        """The teacher's states, and its logits under them."""
        states = encode_text(self.teacher, batch.ids, batch.text_mask).states
        return states, self._decoder(batch.inputs, states, batch.text_mask)

    def inputs(self, batch: DecoderBatch, targets: object) -> tuple[Tensor, Tensor]:
        """The text."""
        return batch.ids, batch.text_mask

    def losses(self, output: Tensor, batch: DecoderBatch, targets: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The error of the states, and the KL through the teacher's decoder."""
        states, logits = targets
        student_logits = self._decoder(batch.inputs, output.to(states.dtype), batch.text_mask)
        kl = mean_over_valid(chunked(forward_kl, logits, student_logits, batch.mask), batch.mask)
        return {"states": state_error(output, states, batch.text_mask), "kl": kl}

    def validate(self, model: Model) -> dict[str, float]:
        """The means of both losses over the held-out sequences."""
        totals: dict[str, float] = {}
        rows, device = len(self.held_out.codes), next(self._decoder.parameters()).device
        for start in range(0, rows, self.batch_size):
            batch = self._sequences(self.held_out, torch.arange(start, min(start + self.batch_size, rows)).numpy())
            batch = to_device(batch, device)
            targets = self.targets(batch)
            output, _ = model(*self.inputs(batch, targets))
            for name, value in self.losses(output, batch, targets).items():
                totals[name] = totals.get(name, 0.0) + value.item() * len(batch.ids) / rows
        return totals

    def _sequences(self, tokens: TokenDataset, rows: Rows) -> DecoderBatch:
        return sequences_of(tokens, rows, "guided", int(self.teacher.config.decoder.vocab_size))
