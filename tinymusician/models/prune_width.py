"""Prunes the width of a decoder: a student is initialized with parts of its teacher's matrices.

The student keeps:

    channels   of the residual stream, evenly from both halves of them: positions are cosines in the first half and
               sines in the second, by frequency, so the student's positions are nearly those of the teacher
    heads      of each attention, those with the largest output matrices (Frobenius norm), in their order
    neurons    of each feed-forward block, those with the largest |in|·|out|, in their order

Matrices that read fewer channels are scaled by √(teacher's width / student's), so that sums keep their magnitude.
Weight norms as the criterion: arXiv 1608.08710; whole heads and neurons: arXiv 2407.14679, section 2.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from tinymusician.models.protocols import DecoderConfig, Musicgen
from tinymusician.models.prune_layers import build_musicgen, check_layers
from tinymusician.models.shape import check_pruned_width

_BODY = "decoder.model.decoder."


def prune_width(teacher: Musicgen, layers: Sequence[int], width: int, heads: int, feed_forward: int) -> Musicgen:
    """A MusicGen with the teacher's `layers` in a smaller width; text encoder and codec are the teacher's.

    Raises:
        RecipeError: a layer does not exist, or the shape cannot be pruned from the teacher.
    """
    config = teacher.config.decoder
    check_layers(layers, config.num_hidden_layers)
    sizes, text = (
        (config.hidden_size, config.num_attention_heads, config.ffn_dim),
        teacher.config.text_encoder.hidden_size,
    )
    check_pruned_width(width, heads, feed_forward, *sizes, text)
    shape = copy.deepcopy(teacher.config)
    shape.decoder.num_hidden_layers = len(layers)
    shape.decoder.hidden_size, shape.decoder.num_attention_heads, shape.decoder.ffn_dim = width, heads, feed_forward
    weights = teacher.state_dict()
    pruned = {name: value for name, value in weights.items() if not name.startswith(("decoder.", "enc_to_dec_proj."))}
    pruned |= _outside_layers(weights, config, width, shape.text_encoder.hidden_size)
    for new, old in enumerate(layers):
        cut = _layer(weights, f"{_BODY}layers.{old}.", config, width, heads, feed_forward)
        pruned |= {f"{_BODY}layers.{new}.{name}": value for name, value in cut.items()}
    return build_musicgen(shape, pruned, teacher)


def channels(count: int, width: int) -> Tensor:
    """The indices of `count` of `width` channels: as many of each half, evenly spaced, first and last included."""
    half = torch.linspace(0, width // 2 - 1, count // 2).round().long()
    return torch.cat([half, half + width // 2])


def _outside_layers(
    weights: dict[str, Tensor], config: DecoderConfig, width: int, text_width: int
) -> dict[str, Tensor]:
    """Embeddings, final norm, heads, and the projection of the text states."""
    retained, gain = channels(width, config.hidden_size), (config.hidden_size / width) ** 0.5
    pruned = {}
    for book in range(config.num_codebooks):
        embedding, head = f"{_BODY}embed_tokens.{book}.weight", f"decoder.lm_heads.{book}.weight"
        pruned[embedding] = weights[embedding][:, retained]
        pruned[head] = weights[head][:, retained] * gain
    for name in ("weight", "bias"):
        pruned[f"{_BODY}layer_norm.{name}"] = weights[f"{_BODY}layer_norm.{name}"][retained]
    if text_width != width:
        # A teacher as wide as its text states has no projection: it is the identity.
        matrix = weights.get("enc_to_dec_proj.weight", torch.eye(config.hidden_size))
        pruned["enc_to_dec_proj.weight"] = matrix[retained]
        pruned["enc_to_dec_proj.bias"] = weights.get("enc_to_dec_proj.bias", torch.zeros(config.hidden_size))[retained]
    return pruned


def _layer(
    weights: dict[str, Tensor], prefix: str, config: DecoderConfig, width: int, heads: int, feed_forward: int
) -> dict[str, Tensor]:
    """One layer's weights, by their names within the layer."""
    whole = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    retained, gain = channels(width, config.hidden_size), (config.hidden_size / width) ** 0.5
    pruned = {name: value[retained] for name, value in whole.items() if "layer_norm" in name}
    for attention in ("self_attn", "encoder_attn"):
        out = whole[f"{attention}.out_proj.weight"]
        by_head = out.view(len(out), config.num_attention_heads, -1).square().sum((0, 2))
        rows = wide(largest(by_head, heads), config.hidden_size // config.num_attention_heads)
        for part in "qkv":
            name = f"{attention}.{part}_proj.weight"
            pruned[name] = whole[name][rows][:, retained] * gain
        pruned[f"{attention}.out_proj.weight"] = out[retained][:, rows]
    first, second = whole["fc1.weight"], whole["fc2.weight"]
    neurons = largest(first.norm(dim=1) * second.norm(dim=0), feed_forward)
    pruned["fc1.weight"], pruned["fc2.weight"] = first[neurons][:, retained] * gain, second[retained][:, neurons]
    return pruned


def largest(values: Tensor, count: int) -> Tensor:
    """The indices of the `count` largest values, in order."""
    return values.topk(count).indices.sort().values


def wide(heads: Tensor, width: int) -> Tensor:
    """The rows of whole heads."""
    return (heads[:, None] * width + torch.arange(width, device=heads.device)).flatten()
