"""The weights of a MusicGen decoder as decoding uses them: fused, in the precision of the products.

Queries, keys and values are one matrix, and the heads of all codebooks are another, so a step launches fewer products.
Shapes: D width, H attention heads of this process, W width of one head, F feed-forward width, K codebook, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from tinymusician.models.protocols import DecoderLayer, Musicgen


@dataclass(frozen=True)
class Norm:
    """A layer norm's weight and bias, [D] each."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, x_RD: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x_RD, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer; `cross_keys_values` [2·H·W, D] project the text once, all others take part in every step."""

    self_norm: Norm
    queries_keys_values: Tensor
    self_output: Tensor
    cross_norm: Norm
    cross_queries: Tensor
    cross_keys_values: Tensor
    cross_output: Tensor
    feed_forward_norm: Norm
    feed_forward_in: Tensor
    feed_forward_out: Tensor
    activation: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DecoderWeights:
    """A decoder: embeddings [K·(V + 1), D] and heads [K·V, D] of all codebooks in float32, and its layers.

    `group` are the processes that share a tensor-parallel decoder; each has its slices of the layers.
    """

    embeddings: Tensor
    layers: list[LayerWeights]
    final_norm: Norm
    heads: Tensor
    dtype: torch.dtype
    num_codebooks: int
    vocab_size: int
    num_heads: int
    head_width: int
    sinusoids: Callable[[int, int], Tensor]
    group: dist.ProcessGroup | None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.heads.device

    def positions(self, steps: int) -> Tensor:
        """The position embeddings of the first steps, [S, D]."""
        return self.sinusoids(steps, self.heads.shape[1]).to(self.device, torch.float32)


def decoder_weights(model: Musicgen, dtype: torch.dtype | None = None) -> DecoderWeights:
    """The weights of a MusicGen's decoder; its layers' products run in `dtype`, by default the weights' own."""
    decoder, config = model.decoder.model.decoder, model.decoder.config
    layers = cast("list[DecoderLayer]", list(decoder.layers))
    first = layers[0].self_attn.q_proj.weight
    dtype = dtype or first.dtype
    head_width = config.hidden_size // config.num_attention_heads
    return DecoderWeights(
        _stacked(decoder.embed_tokens),
        [_layer_weights(layer, dtype) for layer in layers],
        _norm(decoder.layer_norm),
        _stacked(model.decoder.lm_heads),
        dtype,
        config.num_codebooks,
        config.vocab_size,
        first.to_local().shape[0] // head_width if isinstance(first, DTensor) else config.num_attention_heads,
        head_width,
        decoder.embed_positions.get_embedding,
        first.device_mesh.get_group() if isinstance(first, DTensor) else None,
    )


def _layer_weights(layer: DecoderLayer, dtype: torch.dtype) -> LayerWeights:
    itself, cross = layer.self_attn, layer.encoder_attn
    return LayerWeights(
        _norm(layer.self_attn_layer_norm),
        _cast(dtype, itself.q_proj, itself.k_proj, itself.v_proj),
        _cast(dtype, itself.out_proj),
        _norm(layer.encoder_attn_layer_norm),
        _cast(dtype, cross.q_proj),
        _cast(dtype, cross.k_proj, cross.v_proj),
        _cast(dtype, cross.out_proj),
        _norm(layer.final_layer_norm),
        _cast(dtype, layer.fc1),
        _cast(dtype, layer.fc2),
        layer.activation_fn,
    )


def _cast(dtype: torch.dtype, *linears: torch.nn.Linear) -> Tensor:
    """The matrices of linear layers in one, by rows; of a tensor-parallel layer, this process's slices."""
    weights = [linear.weight.detach() for linear in linears]
    local = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]
    return torch.cat([weight.to(dtype) for weight in local]) if len(local) > 1 else local[0].to(dtype)


def _stacked(modules: torch.nn.ModuleList) -> Tensor:
    return torch.cat([cast("Tensor", module.weight).detach().float() for module in modules])


def _norm(norm: torch.nn.LayerNorm) -> Norm:
    return Norm(norm.weight.detach().float(), norm.bias.detach().float(), norm.eps)
