"""EnCodec as ONNX: a decoder that can continue where it stopped, and an encoder for clips to be continued.

The decoder's convolutions see a few frames on both sides; its LSTM has a state. So a chunk is decoded exactly if the
LSTM starts from its previous state, and the chunk has enough context frames on both sides, which are cut off:

    codes ─▶ embed, first convolution ─▶ cut the context ─▶ LSTM from its state ─▶ behind what is kept ─▶ wave

The architecture is that of transformers' `EncodecModel` (arXiv 2210.13438), against which the tests compare the graphs.
Shapes: B row, K codebook, T frame, D channels of the LSTM.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx

from tinymusician.errors import ModelError
from tinymusician.models.protocols import Codec, EncodecConfig
from tinymusician.quantize.graph import GraphWriter

Weights = Mapping[str, npt.NDArray[np.float32]]


def codec_weights(codec: Codec) -> dict[str, npt.NDArray[np.float32]]:
    """The weights of transformers' EncodecModel by name, with weight normalization folded in.

    Raises:
        ModelError: another normalization than by weight, causal convolutions, or normalized input.
    """
    config = codec.config
    for field, expected in (("norm_type", "weight_norm"), ("use_causal_conv", False), ("normalize", False)):
        if getattr(config, field) != expected:
            raise ModelError(f"codec: {field} = {getattr(config, field)!r}; only {expected!r} can be exported")
    weights = {
        name: value.detach().numpy() for name, value in codec.state_dict().items() if "parametrizations" not in name
    }
    for name, module in codec.named_modules():
        if hasattr(module, "parametrizations"):
            weights[f"{name}.weight"] = module.weight.detach().numpy()
    return weights


def frames_around(config: EncodecConfig) -> tuple[int, int]:
    """The number of context frames of the convolutions, on each side: before the LSTM, and after it."""
    reach = (config.last_kernel_size - 1) // 2
    for ratio in reversed(config.upsampling_ratios):
        for block in range(config.num_residual_layers):
            reach += (config.residual_kernel_size - 1) * config.dilation_growth_rate**block // 2
        reach = -(-reach // ratio) + 1
    return (config.kernel_size - 1) // 2, reach


def codec_decoder_graph(config: EncodecConfig, weights: Weights) -> onnx.ModelProto:
    """`codes`, `cut`, `state` and `kept` to `audio`, `latent` and `state_after`.

    `codes` are [B, K, T], `cut` [2], `state` [B, 2·layers, D], `kept` [B, D, P]. `cut` is the number of frames at the
    start and the end of `codes` that are context only. The N = T - cut frames between them go through the LSTM;
    `latent` [B, D, P + N] are the kept frames and these, `audio` their samples.
    """
    codec = _CodecGraphBuilder(config, weights)
    g = codec.g
    wide = config.num_filters * 2 ** len(config.upsampling_ratios)
    g.input("codes", "int64", ["B", config.num_quantizers, "T"])
    g.input("cut", "int64", [2])
    g.input("state", "float32", ["B", 2 * config.num_lstm_layers, wide])
    g.input("kept", "float32", ["B", wide, "P"])
    x = codec.convolution(codec.embedding(), "decoder.layers.0")
    x = codec.recurrence(_cut(g, x), "decoder.layers.1", "state")
    x = g.node("Concat", ["kept", x], "latent", axis=2)
    number = 2
    for ratio in config.upsampling_ratios:
        x = codec.upsample(codec.elu(x, f"decoder.layers.{number}"), f"decoder.layers.{number + 1}", ratio)
        number += 2
        for block in range(config.num_residual_layers):
            x = codec.residual(x, f"decoder.layers.{number}", config.dilation_growth_rate**block)
            number += 1
    x = codec.convolution(codec.elu(x, f"decoder.layers.{number}"), f"decoder.layers.{number + 1}")
    g.node("Squeeze", [x, g.ints(1)], "audio")
    g.output("audio", "float32", ["B", "samples"])
    g.output("latent", "float32", ["B", wide, "N"])
    g.output("state_after", "float32", ["B", 2 * config.num_lstm_layers, wide])
    return g.model()


def codec_encoder_graph(config: EncodecConfig, weights: Weights) -> onnx.ModelProto:
    """`audio` [B, samples], a whole number of frames, to `codes` [B, K, T]."""
    codec = _CodecGraphBuilder(config, weights)
    g = codec.g
    g.input("audio", "float32", ["B", "samples"])
    x = codec.convolution(g.node("Unsqueeze", ["audio", g.ints(1)], "wave"), "encoder.layers.0")
    number = 1
    for ratio in reversed(config.upsampling_ratios):
        for block in range(config.num_residual_layers):
            x = codec.residual(x, f"encoder.layers.{number}", config.dilation_growth_rate**block)
            number += 1
        x = codec.convolution(codec.elu(x, f"encoder.layers.{number}"), f"encoder.layers.{number + 1}", stride=ratio)
        number += 2
    x = codec.recurrence(x, f"encoder.layers.{number}", None)
    x = codec.convolution(codec.elu(x, f"encoder.layers.{number + 1}"), f"encoder.layers.{number + 2}")
    codec.quantize(x)
    g.output("codes", "int64", ["B", config.num_quantizers, "T"])
    return g.model()


def _cut(g: GraphWriter, x: str) -> str:
    """Cut the context off both ends of the last axis."""
    parts = g.nodes("Split", ["cut"], ["cut_left", "cut_right"], axis=0, num_outputs=2)
    length = g.node("Shape", [x], "context_length", start=2)
    return g.node("Slice", [x, parts, g.node("Sub", [length, "cut_right"], "cut_end"), g.ints(2)], "new_frames")


class _CodecGraphBuilder:
    """Builds EnCodec's layers as nodes."""

    def __init__(self, config: EncodecConfig, weights: Weights) -> None:
        self.config, self.weights, self.g = config, weights, GraphWriter("codec")

    def embedding(self) -> str:
        """The sum of the codebooks' vectors, from one table: [B, hidden, T]."""
        g, num_codebooks = self.g, self.config.num_quantizers
        tables = [self.weights[f"quantizer.layers.{book}.codebook.embed"] for book in range(num_codebooks)]
        starts = (np.arange(num_codebooks, dtype=np.int64) * len(tables[0]))[:, None]
        rows = g.node("Add", ["codes", g.weight("codebook_starts", starts)], "rows")
        vectors = g.node("Gather", [g.weight("codebooks", np.concatenate(tables)), rows], "vectors")
        summed = g.node("ReduceSum", [vectors, g.ints(1)], "vector", keepdims=0)
        return g.node("Transpose", [summed], "vector_columns", perm=[0, 2, 1])

    def convolution(self, x: str, name: str, stride: int = 1, dilation: int = 1) -> str:
        """A convolution with reflection padding; uneven padding has one more on the left."""
        weight = self.weights[f"{name}.conv.weight"]
        total = (weight.shape[2] - 1) * dilation + 1 - stride
        if total:
            x = self._pad(x, total - total // 2, total // 2, name)
        inputs = [x, self.g.weight(f"{name}.weight", weight), self._bias(name)]
        return self.g.node("Conv", inputs, name, strides=[stride], dilations=[dilation])

    def upsample(self, x: str, name: str, ratio: int) -> str:
        """A transposed convolution with its edges trimmed."""
        weight = self.weights[f"{name}.conv.weight"]
        total = weight.shape[2] - ratio
        inputs = [x, self.g.weight(f"{name}.weight", weight), self._bias(name)]
        return self.g.node("ConvTranspose", inputs, name, strides=[ratio], pads=[total - total // 2, total // 2])

    def residual(self, x: str, name: str, dilation: int) -> str:
        """Two convolutions beside a shortcut."""
        y = self.convolution(self.elu(x, f"{name}.block.0"), f"{name}.block.1", dilation=dilation)
        y = self.convolution(self.elu(y, f"{name}.block.2"), f"{name}.block.3")
        short = self.convolution(x, f"{name}.shortcut") if self.config.use_conv_shortcut else x
        return self.g.node("Add", [short, y], name)

    def elu(self, x: str, name: str) -> str:
        """Exponential linear unit."""
        return self.g.node("Elu", [x], name)

    def recurrence(self, x: str, name: str, state: str | None) -> str:
        """The stacked LSTM with its shortcut, [B, D, T]; with `state` it starts there, and outputs its final state."""
        g, layers = self.g, self.config.num_lstm_layers
        sequence = short = g.node("Transpose", [x], f"{name}.sequence", perm=[2, 0, 1])
        starts = self._states(state, name) if state else [""] * (2 * layers)
        ends: list[str] = []
        for layer in range(layers):
            outputs = [f"{name}.{layer}.{part}" for part in ("hidden", "last_hidden", "last_cell")]
            inputs = [sequence, *self._lstm_weights(name, layer), "", starts[2 * layer], starts[2 * layer + 1]]
            width = self.weights[f"{name}.lstm.weight_hh_l{layer}"].shape[1]
            g.nodes("LSTM", inputs, outputs, hidden_size=width)
            sequence = g.node("Squeeze", [outputs[0], g.ints(1)], f"{name}.{layer}.sequence")
            ends += outputs[1:]
        if state:
            together = g.node("Concat", ends, f"{name}.ends", axis=0)
            g.node("Transpose", [together], f"{state}_after", perm=[1, 0, 2])
        summed = g.node("Add", [sequence, short], f"{name}.sum")
        return g.node("Transpose", [summed], name, perm=[1, 2, 0])

    def quantize(self, x: str) -> str:
        """Residual vector quantization: at each level the nearest vector to the residual (arXiv 2210.13438, 3.2)."""
        g = self.g
        left, chosen = g.node("Transpose", [x], "left.0", perm=[0, 2, 1]), []
        for book in range(self.config.num_quantizers):
            table = self.weights[f"quantizer.layers.{book}.codebook.embed"]
            name = g.weight(f"codebooks.{book}", table)
            twice = g.node("MatMul", [left, g.weight(f"codebooks.{book}.twice", 2 * table.T)], f"twice.{book}")
            lengths = g.weight(f"codebooks.{book}.lengths", np.square(table).sum(1))
            nearness = g.node("Sub", [twice, lengths], f"nearness.{book}")
            index = g.node("ArgMax", [nearness], f"index.{book}", axis=2, keepdims=0)
            chosen.append(g.node("Unsqueeze", [index, g.ints(1)], f"index_row.{book}"))
            vector = g.node("Gather", [name, index], f"chosen.{book}")
            left = g.node("Sub", [left, vector], f"left.{book + 1}")
        return g.node("Concat", chosen, "codes", axis=1)

    def _pad(self, x: str, left: int, right: int, name: str) -> str:
        pads = self.g.ints(0, 0, left, 0, 0, right)
        return self.g.node("Pad", [x, pads], f"{name}.padded", mode=self.config.pad_mode)

    def _bias(self, name: str) -> str:
        return self.g.weight(f"{name}.bias", self.weights[f"{name}.conv.bias"])

    def _lstm_weights(self, name: str, layer: int) -> list[str]:
        """PyTorch orders the gates input, forget, cell, output; ONNX input, output, forget, cell."""

        def gates(part: str) -> npt.NDArray[np.float32]:
            i, f, c, o = np.split(self.weights[f"{name}.lstm.{part}_l{layer}"], 4)
            return np.concatenate([i, o, f, c])

        bias = np.concatenate([gates("bias_ih"), gates("bias_hh")])
        values = {"input": gates("weight_ih"), "hidden": gates("weight_hh"), "bias": bias}
        return [self.g.weight(f"{name}.{layer}.weight_{part}", value[None]) for part, value in values.items()]

    def _states(self, state: str, name: str) -> list[str]:
        """The state [B, 2·layers, D] split by layer, each [1, B, D]: hidden and cell in turn."""
        count = 2 * self.config.num_lstm_layers
        rows = self.g.node("Transpose", [state], f"{name}.starts", perm=[1, 0, 2])
        names = [f"{name}.start.{number}" for number in range(count)]
        self.g.nodes("Split", [rows], names, axis=0, num_outputs=count)
        return names
