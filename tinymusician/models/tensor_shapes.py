"""The names and shapes of a MusicGen's tensors, as transformers saves them, computed without loading anything."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

Tensors = dict[str, tuple[int, ...]]
"""Shapes by name."""


def parameter_count(tensors: Tensors) -> int:
    """The number of elements of all tensors."""
    return sum(map(math.prod, tensors.values()))


@dataclass(frozen=True)
class DecoderShape:
    """A decoder's `layers`, `width`, `feed_forward` width, `codebooks` of `vocabulary` codes, and text width `text`.

    `positions` limits the steps of a sequence; `frame_rate` is the codec's, in frames per second; `heads` are
    attention's.
    """

    layers: int
    width: int
    feed_forward: int
    codebooks: int = 4
    vocabulary: int = 2048
    text: int = 768
    positions: int = 2048
    frame_rate: float = 50.0
    heads: int = 16

    @property
    def parameters(self) -> int:
        """The parameter count of the decoder, as in transformers, without the projection of the text states."""
        return parameter_count(self.tensors())

    def with_layers(self, layers: int) -> DecoderShape:
        """The same shape with another depth."""
        return replace(self, layers=layers)

    def tensors(self) -> Tensors:
        """The tensors of transformers' MusicgenForCausalLM."""
        width, shapes = self.width, Tensors()
        for codebook in range(self.codebooks):
            shapes[f"lm_heads.{codebook}.weight"] = (self.vocabulary, width)
            shapes[f"model.decoder.embed_tokens.{codebook}.weight"] = (self.vocabulary + 1, width)
        for layer in range(self.layers):
            prefix = f"model.decoder.layers.{layer}"
            for attention in ("self_attn", "encoder_attn"):
                shapes |= {
                    f"{prefix}.{attention}.{name}_proj.weight": (width, width) for name in ("k", "out", "q", "v")
                }
                shapes |= _layer_norm(f"{prefix}.{attention}_layer_norm", width)
            shapes[f"{prefix}.fc1.weight"] = (self.feed_forward, width)
            shapes[f"{prefix}.fc2.weight"] = (width, self.feed_forward)
            shapes |= _layer_norm(f"{prefix}.final_layer_norm", width)
        return shapes | _layer_norm("model.decoder.layer_norm", width)

    def projection_tensors(self) -> Tensors:
        """The tensors of the projection of text states, which there is if they are of another width."""
        return {} if self.text == self.width else {"weight": (self.width, self.text), "bias": (self.width,)}


@dataclass(frozen=True)
class TextShape:
    """A T5 encoder: `layers` with `heads` of width `head`, its `vocabulary`, and its position `buckets`.

    `gated` is a feed-forward layer with a gate, as in T5 v1.1 and FLAN-T5.
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    feed_forward: int = 3072
    head: int = 64
    vocabulary: int = 32128
    buckets: int = 32
    gated: bool = False

    @property
    def parameters(self) -> int:
        """The number of parameters, as transformers counts them."""
        return parameter_count(self.tensors())

    def tensors(self) -> Tensors:
        """The tensors of transformers' T5EncoderModel; the first layer has the position biases of all."""
        inner, shapes = self.heads * self.head, Tensors()
        shapes["shared.weight"] = (self.vocabulary, self.width)
        shapes["encoder.final_layer_norm.weight"] = (self.width,)
        bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        shapes[bias] = (self.buckets, self.heads)
        for layer in range(self.layers):
            attention, dense = (f"encoder.block.{layer}.layer.{part}" for part in (0, 1))
            shapes |= {f"{attention}.SelfAttention.{name}.weight": (inner, self.width) for name in ("k", "q", "v")}
            shapes[f"{attention}.SelfAttention.o.weight"] = (self.width, inner)
            for name in ("wi_0", "wi_1") if self.gated else ("wi",):
                shapes[f"{dense}.DenseReluDense.{name}.weight"] = (self.feed_forward, self.width)
            shapes[f"{dense}.DenseReluDense.wo.weight"] = (self.width, self.feed_forward)
            shapes |= {f"{part}.layer_norm.weight": (self.width,) for part in (attention, dense)}
        return shapes


@dataclass(frozen=True)
class CodecShape:
    """An EnCodec with `filters` in its first convolution, and `codebooks` of `codes` vectors.

    Its convolutions are under weight norm, or followed by a group norm.
    """

    filters: int = 64
    residual_layers: int = 1
    ratios: tuple[int, ...] = (8, 5, 4, 4)
    latent: int = 128
    lstm_layers: int = 2
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    compress: int = 2
    shortcut: bool = False
    channels: int = 1
    codebooks: int = 4
    codes: int = 2048
    code_width: int = 128
    weight_norm: bool = True

    @property
    def decoder_parameters(self) -> int:
        """The number of parameters of the decoder, which a device needs, as transformers counts them."""
        return parameter_count(self.decoder_tensors())

    def tensors(self) -> Tensors:
        """The tensors of transformers' EncodecModel."""
        shapes = self.encoder_tensors() | self.decoder_tensors()
        for codebook in range(self.codebooks):
            prefix = f"quantizer.layers.{codebook}.codebook"
            shapes |= {f"{prefix}.{name}": (self.codes, self.code_width) for name in ("embed", "embed_avg")}
            shapes |= {f"{prefix}.cluster_size": (self.codes,), f"{prefix}.inited": (1,)}
        return shapes

    def encoder_tensors(self) -> Tensors:
        """The tensors of the encoder: convolutions that double the width, an LSTM, and the latent's convolution."""
        width, layers = self.filters, _LayerNumbers("encoder")
        shapes = self._conv(next(layers), width, self.channels, self.kernel)
        for ratio in reversed(self.ratios):
            shapes |= self._residual_blocks(layers, width)
            layers.skip_activation()
            shapes |= self._conv(next(layers), 2 * width, width, 2 * ratio)
            width *= 2
        shapes |= self._lstm(next(layers), width)
        layers.skip_activation()
        return shapes | self._conv(next(layers), self.latent, width, self.last_kernel)

    def decoder_tensors(self) -> Tensors:
        """The tensors of the decoder, which mirrors the encoder."""
        width, layers = self.filters << len(self.ratios), _LayerNumbers("decoder")
        shapes = self._conv(next(layers), width, self.latent, self.kernel)
        shapes |= self._lstm(next(layers), width)
        for ratio in self.ratios:
            layers.skip_activation()
            shapes |= self._conv(next(layers), width // 2, width, 2 * ratio, transposed=True)
            width //= 2
            shapes |= self._residual_blocks(layers, width)
        layers.skip_activation()
        return shapes | self._conv(next(layers), self.channels, width, self.last_kernel)

    def _residual_blocks(self, layers: _LayerNumbers, width: int) -> Tensors:
        """Two convolutions each, and one more if the shortcut is a convolution."""
        hidden, shapes = width // self.compress, Tensors()
        for _ in range(self.residual_layers):
            layer = next(layers)
            shapes |= self._conv(f"{layer}.block.1", hidden, width, self.residual_kernel)
            shapes |= self._conv(f"{layer}.block.3", width, hidden, 1)
            shapes |= self._conv(f"{layer}.shortcut", width, width, 1) if self.shortcut else {}
        return shapes

    def _conv(self, layer: str, outputs: int, inputs: int, kernel: int, transposed: bool = False) -> Tensors:
        weight = (inputs, outputs, kernel) if transposed else (outputs, inputs, kernel)
        shapes: Tensors = {f"{layer}.conv.bias": (outputs,)}
        if self.weight_norm:
            prefix = f"{layer}.conv.parametrizations.weight"
            return shapes | {f"{prefix}.original0": (weight[0], 1, 1), f"{prefix}.original1": weight}
        return shapes | {f"{layer}.conv.weight": weight} | _layer_norm(f"{layer}.norm", outputs)

    def _lstm(self, layer: str, width: int) -> Tensors:
        shapes = Tensors()
        for depth in range(self.lstm_layers):
            shapes |= {f"{layer}.lstm.weight_{source}_l{depth}": (4 * width, width) for source in ("ih", "hh")}
            shapes |= {f"{layer}.lstm.bias_{source}_l{depth}": (4 * width,) for source in ("ih", "hh")}
        return shapes


GUIDANCE_WAVES = 8
"""Sines, and as many cosines, of a guidance scale's position in its range."""


def guidance_tensors(text_width: int) -> Tensors:
    """The tensors of a guidance-conditioned student's embedding of the scale."""
    first = {"first.weight": (text_width, 2 * GUIDANCE_WAVES), "first.bias": (text_width,)}
    return {**first, "last.weight": (text_width, text_width), "last.bias": (text_width,)}


class _LayerNumbers(Iterator[str]):
    """The names of a codec's layers in order; activations count as layers."""

    def __init__(self, part: str) -> None:
        self._part, self._number = part, -1

    def __next__(self) -> str:
        self._number += 1
        return f"{self._part}.layers.{self._number}"

    def skip_activation(self) -> None:
        self._number += 1


def _layer_norm(name: str, width: int) -> Tensors:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
