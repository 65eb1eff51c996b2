"""MusicGen's forward pass: the text condition, and the language model's logits over delayed codes.

Shapes: B batch, K codebook, S step of the delayed sequence, V vocabulary, L text token, E text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tinymusician.errors import ModelError
from tinymusician.models.guidance import guidance_embedding
from tinymusician.models.protocols import HasTextEncoder, Musicgen


class TextCondition(NamedTuple):
    """Text states [B, L, E] of the text encoder, and their mask [B, L]; all-zero rows mean no text."""

    states: Tensor
    mask: Tensor

    def without_text(self) -> TextCondition:
        """The null condition of classifier-free guidance: zero states under an all-zero mask."""
        return TextCondition(torch.zeros_like(self.states), torch.zeros_like(self.mask))

    def dropped(self, drop_B: Tensor) -> TextCondition:
        """The condition with the null condition in the rows where `drop_B` is true."""
        keep = ~drop_B
        return TextCondition(self.states * keep[:, None, None], self.mask * keep[:, None])


class ConditionedDecoder(nn.Module):
    """MusicGen's language model: delayed codes and a text condition in, logits of every codebook out."""

    def __init__(self, model: Musicgen) -> None:
        """Share the decoder of a MusicGen model, and its projection of text states if it has one."""
        super().__init__()
        self.decoder = model.decoder
        self.project = getattr(model, "enc_to_dec_proj", None)
        self.guidance_embedding = guidance_embedding(model)

    def forward(self, inputs_BKS: Tensor, states_BLE: Tensor, mask_BL: Tensor, scale_B: Tensor | None = None) -> Tensor:
        """Logits [B, K, S, V] for the codes that follow each prefix of `inputs_BKS`.

        `scale_B` is for a guidance-conditioned student whose scale is not in the states yet.
        """
        return self._run(inputs_BKS, states_BLE, mask_BL, scale_B, hidden=False)[0]

    def with_states(
        self, inputs_BKS: Tensor, states_BLE: Tensor, mask_BL: Tensor, scale_B: Tensor | None = None
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """The logits, and the output of each layer, [B, S, D]; the last one's is after the final norm."""
        return self._run(inputs_BKS, states_BLE, mask_BL, scale_B, hidden=True)

    def _run(
        self, inputs_BKS: Tensor, states_BLE: Tensor, mask_BL: Tensor, scale_B: Tensor | None, hidden: bool
    ) -> tuple[Tensor, Sequence[Tensor]]:
        batch, num_codebooks, steps = inputs_BKS.shape
        states = states_BLE.to(next(self.decoder.lm_heads.parameters()).dtype)
        if self.guidance_embedding is not None and scale_B is not None:
            states = states + self.guidance_embedding(scale_B)[:, None]
        states = self.project(states) if self.project is not None else states
        states = states * mask_BL[..., None].to(states.dtype)
        output = self.decoder(
            input_ids=inputs_BKS.reshape(batch * num_codebooks, steps),
            encoder_hidden_states=states,
            encoder_attention_mask=mask_BL,
            use_cache=False,
            output_hidden_states=hidden,
        )
        return output.logits.view(batch, num_codebooks, steps, -1), output.hidden_states[1:] if hidden else ()


def encode_text(model: HasTextEncoder, ids_BL: Tensor, mask_BL: Tensor) -> TextCondition:
    """Run the text encoder; the decoder projects and masks its states."""
    states = model.text_encoder(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
    return TextCondition(states, mask_BL)


def guidance_condition(
    model: Musicgen, ids_BL: Tensor, mask_BL: Tensor, guidance: float | Sequence[float]
) -> TextCondition:
    """The text condition of sampling; for a guidance-conditioned model it contains the scale, or each row's scale.

    Raises:
        ModelError: a scale is outside the range of the model.
    """
    text = encode_text(model, ids_BL, mask_BL)
    embedding = guidance_embedding(model)
    if embedding is None:
        return text
    low, high = model.config.guidance_range
    for scale in [guidance] if isinstance(guidance, float | int) else guidance:
        if not low <= scale <= high:
            raise ModelError(f"guidance {scale:g}: this model was trained for {low:g} to {high:g}")
    scales = torch.as_tensor(guidance, dtype=torch.float32, device=ids_BL.device).expand(len(ids_BL))
    return TextCondition(text.states + embedding(scales)[:, None].to(text.states.dtype), text.mask)
