"""A language model with audio input: audio encoder, projector, small causal LM, as TinyMU (arXiv 2604.15849).

The sequence is: the projected vectors of the clip, a separator, the prompt, the answer, an end token. Separator and end
are one token, as in TinyMU's code (xiquan-li/TinyMU). Rows are padded on the right, so causal attention needs no mask,
and positions have no gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tinymusician.errors import ModelError
from tinymusician.models.audio_encoder import AudioEncoder, AudioEncoderShape


@dataclass(frozen=True)
class LanguageModelShape:
    """The shape of a Llama; the defaults are SmolLM2-135M's. `end` separates, and ends answers."""

    vocabulary: int = 49_152
    width: int = 576
    layers: int = 30
    heads: int = 9
    key_value_heads: int = 3
    feed_forward: int = 1536
    rope_theta: float = 100_000.0
    positions: int = 8192
    norm_epsilon: float = 1e-5
    end: int = 0


@dataclass(frozen=True)
class AudioLMShape:
    """The shapes of all three components; the defaults are TinyMU's, 229 M parameters."""

    audio_encoder: AudioEncoderShape = field(default_factory=AudioEncoderShape)
    projector_width: int = 2048
    lm: LanguageModelShape = field(default_factory=LanguageModelShape)


class KeyValueCache(Protocol):
    """Keys and values of the positions so far: transformers' `DynamicCache`, as far as it is used."""

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, in place."""


class HiddenStates(Protocol):
    """What a Llama's layers return."""

    last_hidden_state: Tensor
    past_key_values: KeyValueCache


class LlamaLayers(Protocol):
    """transformers' `LlamaModel`, as far as it is used: embeddings and layers."""

    embed_tokens: nn.Embedding

    def __call__(
        self, *, inputs_embeds: Tensor, use_cache: bool, past_key_values: KeyValueCache | None = None
    ) -> HiddenStates: ...


class CausalLM(Protocol):
    """transformers' `LlamaForCausalLM`, as far as it is used."""

    model: LlamaLayers
    lm_head: nn.Linear


class PromptState(NamedTuple):
    """What a model has read: its cache, and the logits of the next token, [B, vocabulary]."""

    cache: KeyValueCache
    logits: Tensor


class Projector(nn.Module):
    """Audio vectors [..., in] to the LM's embeddings [..., out]."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear2(self.linear1(x).relu())
        return output


class AudioLM(nn.Module):
    """The model. Its language model `lm` is transformers' `LlamaForCausalLM`."""

    def __init__(self, shape: AudioLMShape) -> None:
        super().__init__()
        self.shape = shape
        self.audio_encoder = AudioEncoder(shape.audio_encoder)
        self.projector = Projector(shape.audio_encoder.output_width, shape.projector_width, shape.lm.width)
        self.lm = new_lm(shape.lm)

    def forward(self, features_BTF: Tensor | None, ids_BL: Tensor, answers_BL: Tensor) -> Tensor:
        """The logits of the answers' tokens, [tokens, vocabulary], row by row.

        `features` are the audio encoder's vectors, or None for a model without audio. `ids` hold prompt, answer
        and end token; `answers` is true at the tokens that the model is to write.
        """
        lm = self.causal_lm
        hidden = lm.model(inputs_embeds=self.embeddings(features_BTF, ids_BL), use_cache=False).last_hidden_state
        written = hidden[:, -ids_BL.shape[1] - 1 : -1][answers_BL]
        logits: Tensor = lm.lm_head(written)
        return logits

    def read(self, features_BTF: Tensor | None, ids_BL: Tensor) -> PromptState:
        """Read prompts of one length, after the audio encoder's vectors or without audio."""
        out = self.causal_lm.model(inputs_embeds=self.embeddings(features_BTF, ids_BL), use_cache=True)
        return PromptState(out.past_key_values, self.causal_lm.lm_head(out.last_hidden_state[:, -1]))

    def read_on(self, cache: KeyValueCache, ids_BL: Tensor) -> Tensor:
        """Append tokens to a cache, in place; returns the logits after each of them, [B, L, vocabulary]."""
        lm = self.causal_lm
        embeddings = lm.model.embed_tokens(ids_BL)
        out = lm.model(inputs_embeds=embeddings, use_cache=True, past_key_values=cache)
        logits: Tensor = lm.lm_head(out.last_hidden_state)
        return logits

    @property
    def causal_lm(self) -> CausalLM:
        """The language model, typed."""
        return cast(CausalLM, self.lm)

    def embeddings(self, features_BTF: Tensor | None, ids_BL: Tensor) -> Tensor:
        """What the LM reads: audio, separator, text, [B, T + 1 + L, width]."""
        separator = torch.full_like(ids_BL[:, :1], self.shape.lm.end)
        text: Tensor = self.causal_lm.model.embed_tokens(torch.cat([separator, ids_BL], dim=1))
        return text if features_BTF is None else torch.cat([self.projector(features_BTF), text], dim=1)


def copy_layers(teacher: AudioLM, student: AudioLM, layers: Sequence[int]) -> None:
    """Begin a student with layers of its teacher, which is as wide, and with its embeddings, norm and projector.

    Raises:
        ModelError: the teacher has no such layer, or another width.
    """
    one, other = teacher.shape.lm, student.shape.lm
    if replace(one, layers=other.layers) != other or teacher.shape.projector_width != student.shape.projector_width:
        raise ModelError("student: layers are copied from a teacher that differs in their number only")
    if not all(0 <= layer < one.layers for layer in layers):
        raise ModelError(f"teacher.layers {list(layers)}: the teacher's layers are 0 to {one.layers - 1}")
    student.projector.load_state_dict(teacher.projector.state_dict())
    weights = {name: value for name, value in teacher.lm.state_dict().items() if ".layers." not in name}
    for target, source in enumerate(layers):
        prefix = f"model.layers.{source}."
        weights |= {
            f"model.layers.{target}.{name.removeprefix(prefix)}": value
            for name, value in teacher.lm.state_dict().items()
            if name.startswith(prefix)
        }
    student.lm.load_state_dict(weights)


def new_lm(shape: LanguageModelShape) -> nn.Module:
    """A Llama with random weights and tied embeddings."""
    lm: nn.Module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads,
            rope_theta=shape.rope_theta,
            max_position_embeddings=shape.positions,
            rms_norm_eps=shape.norm_epsilon,
            tie_word_embeddings=True,
            bos_token_id=shape.end,
            eos_token_id=shape.end,
        )
    )
    return lm
