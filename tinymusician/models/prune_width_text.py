"""Prunes a text encoder: fewer layers in a smaller width, initialized from a T5 encoder.

It keeps:

    channels   of the residual stream, those that embeddings and layers write most to (Frobenius norm)
    heads      those with the largest output matrices over the kept layers; all layers share the position biases
    neurons    of each feed-forward block, those with the largest |in|·|out|

Matrices that read fewer channels are scaled as in `prune_width`. A linear map projects the states to the teacher's
width. A decoder reads text states of another width than its own through a linear projection; in the end, map and
projection become one, and the student is a plain MusicGen.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import T5EncoderModel

from tinymusician.errors import ModelError
from tinymusician.models.component_shapes import check_text, check_text_width
from tinymusician.models.protocols import Musicgen, TextEncoderModel
from tinymusician.models.prune_layers import build_musicgen
from tinymusician.models.prune_width import largest, wide


class ProjectedTextEncoder(nn.Module):
    """A student's text encoder, and the map of its states to its teacher's width."""

    def __init__(self, encoder: TextEncoderModel, to_teacher: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.to_teacher = encoder, to_teacher

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """The mapped states [B, L, E]."""
        states: Tensor = self.to_teacher(self.encoder(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state)
        return states


def prune_text_encoder(
    teacher: TextEncoderModel, layers: Sequence[int], width: int, heads: int, feed_forward: int
) -> ProjectedTextEncoder:
    """A T5 encoder with the teacher's `layers`; initially its map puts every kept channel back to its index.

    Raises:
        RecipeError: a size exceeds the teacher's.
        ModelError: the teacher has gated feed-forward blocks.
    """
    config = teacher.config
    if config.is_gated_act:
        raise ModelError(
            f"text_encoder: the teacher's feed_forward_proj is {config.feed_forward_proj!r}; relu is supported"
        )
    check_text(layers, width, heads, feed_forward, config.num_layers, config.d_model, config.num_heads, config.d_ff)
    shape = copy.deepcopy(config)
    shape.num_layers, shape.d_model, shape.num_heads, shape.d_ff = len(layers), width, heads, feed_forward
    student = T5EncoderModel(shape)
    weights = {name: value.detach() for name, value in teacher.state_dict().items()}
    blocks = [_block(weights, layer) for layer in layers]
    written = weights["shared.weight"].square().sum(0) + sum(
        value.square().sum(1) for block in blocks for name, value in block.items() if name.endswith((".o", ".wo"))
    )
    channels = largest(written, width)
    by_head = [block["attention.o"].view(len(written), config.num_heads, -1).square().sum((0, 2)) for block in blocks]
    retained_heads = largest(torch.stack(by_head).sum(0), heads)
    gain = (config.d_model / width) ** 0.5
    first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    pruned = dict.fromkeys(("shared.weight", "encoder.embed_tokens.weight"), weights["shared.weight"][:, channels])
    pruned |= {first: weights[first][:, retained_heads]}
    pruned["encoder.final_layer_norm.weight"] = weights["encoder.final_layer_norm.weight"][channels]
    for new, block in enumerate(blocks):
        cut = _cut(block, channels, wide(retained_heads, config.d_kv), feed_forward, gain)
        pruned |= {_NAMES[part].format(new): value for part, value in cut.items()}
    student.load_state_dict(pruned)
    to_teacher = nn.Linear(width, config.d_model)
    with torch.no_grad():
        to_teacher.weight.zero_()[channels, torch.arange(width)] = 1
        to_teacher.bias.zero_()
    return ProjectedTextEncoder(student.eval(), to_teacher)


def with_text(model: Musicgen, text: ProjectedTextEncoder) -> Musicgen:
    """A MusicGen with another text encoder: the map becomes part of the projection of the text states.

    Raises:
        RecipeError: the decoder is as wide as the new states, and so has no projection.
    """
    shape = copy.deepcopy(model.config)
    shape.text_encoder = copy.deepcopy(text.encoder.config)
    check_text_width(shape.text_encoder.d_model, shape.decoder.hidden_size)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("text_encoder.")}
    matrix = weights.get("enc_to_dec_proj.weight", torch.eye(shape.decoder.hidden_size))
    bias = weights.get("enc_to_dec_proj.bias", torch.zeros(shape.decoder.hidden_size))
    map_ = text.to_teacher
    weights["enc_to_dec_proj.weight"] = matrix @ map_.weight.detach().to(matrix.device)
    weights["enc_to_dec_proj.bias"] = matrix @ map_.bias.detach().to(matrix.device) + bias
    weights |= {f"text_encoder.{name}": value for name, value in text.encoder.state_dict().items()}
    return build_musicgen(shape, weights, model)


_ATTENTION, _FEED_FORWARD = "encoder.block.{}.layer.0.", "encoder.block.{}.layer.1."
_NAMES = {
    **{f"attention.{part}": f"{_ATTENTION}SelfAttention.{part}.weight" for part in "qkvo"},
    "attention.norm": f"{_ATTENTION}layer_norm.weight",
    "feed_forward.wi": f"{_FEED_FORWARD}DenseReluDense.wi.weight",
    "feed_forward.wo": f"{_FEED_FORWARD}DenseReluDense.wo.weight",
    "feed_forward.norm": f"{_FEED_FORWARD}layer_norm.weight",
}


def _block(weights: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    """One layer's weights, by their roles."""
    return {part: weights[name.format(layer)] for part, name in _NAMES.items()}


def _cut(block: dict[str, Tensor], channels: Tensor, rows: Tensor, feed_forward: int, gain: float) -> dict[str, Tensor]:
    """One layer with these channels, these rows of its heads, and its largest neurons."""
    first, second = block["feed_forward.wi"], block["feed_forward.wo"]
    neurons = largest(first.norm(dim=1) * second.norm(dim=0), feed_forward)
    return {
        **{f"attention.{part}": block[f"attention.{part}"][rows][:, channels] * gain for part in "qkv"},
        "attention.o": block["attention.o"][channels][:, rows],
        "attention.norm": block["attention.norm"][channels],
        "feed_forward.wi": first[neurons][:, channels] * gain,
        "feed_forward.wo": second[channels][:, neurons],
        "feed_forward.norm": block["feed_forward.norm"][channels],
    }
