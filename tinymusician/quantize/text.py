"""The T5 text encoder as ONNX: `ids` and `mask` [B, L] to `states` [B, L, E].

The architecture is that of transformers' `T5EncoderModel` (arXiv 1910.10683), against which the tests compare the
graph. The bucket of every relative position is computed here, once.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx

from tinymusician.errors import ModelError
from tinymusician.models.protocols import TextConfig
from tinymusician.models.tokenizer import MAX_TEXT_TOKENS
from tinymusician.quantize.graph import MICROSOFT, GraphWriter

Weights = Mapping[str, npt.NDArray[np.float32]]
_FORWARDS = {"relu": "Relu", "gated-gelu": "Gelu"}


def text_graph(config: TextConfig, weights: Weights) -> onnx.ModelProto:
    """The encoder of a T5 with plain ReLU or gated GELU feed-forward layers.

    Raises:
        ModelError: it has another kind of feed-forward layer.
    """
    if config.feed_forward_proj not in _FORWARDS:
        allowed = " and ".join(_FORWARDS)
        raise ModelError(f"text encoder: feed_forward_proj {config.feed_forward_proj!r}; {allowed} can be exported")
    g = GraphWriter("text")
    ids, mask = g.input("ids", "int64", ["B", "L"]), g.input("mask", "int32", ["B", "L"])
    x = g.node("Gather", [g.weight("shared.weight", weights["shared.weight"]), ids], "embedding")
    bias = _position_bias(g, config, weights["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"])
    for block in range(config.num_layers):
        name = f"encoder.block.{block}.layer"
        y = _norm(g, x, f"{name}.0.layer_norm", config, weights)
        x = g.node("Add", [x, _attention(g, y, f"{name}.0.SelfAttention", config, weights, bias, mask)], f"{name}.0")
        y = _norm(g, x, f"{name}.1.layer_norm", config, weights)
        x = g.node("Add", [x, _forward(g, y, f"{name}.1.DenseReluDense", config, weights)], f"{name}.1")
    _norm(g, x, "encoder.final_layer_norm", config, weights, "states")
    g.output("states", "float32", ["B", "L", config.d_model])
    return g.model()


def buckets(count: int, largest: int) -> npt.NDArray[np.int64]:
    """The bucket of each distance key - query from 1 - MAX_TEXT_TOKENS to MAX_TEXT_TOKENS - 1.

    Half of the buckets are for keys after the query. One half of each half is for single distances, the other for
    logarithmically longer ranges up to `largest` (arXiv 1910.10683, section 2.1).
    """
    distance = np.arange(1 - MAX_TEXT_TOKENS, MAX_TEXT_TOKENS)
    half = count // 2
    exact = half // 2
    far = np.abs(distance)
    with np.errstate(divide="ignore"):
        steps = np.log(far.astype(np.float32) / exact) / np.log(np.float32(largest / exact)) * (half - exact)
    wide = np.minimum(exact + np.where(far > 0, steps, 0).astype(np.int64), half - 1)
    return (distance > 0) * half + np.where(far < exact, far, wide)


def _position_bias(g: GraphWriter, config: TextConfig, table: npt.NDArray[np.float32]) -> str:
    """The bias of each pair of positions, [1, H, L, L], by their distance."""
    by_distance = table[buckets(config.relative_attention_num_buckets, config.relative_attention_max_distance)].T
    zero, one = g.weight("zero", np.array(0, np.int64)), g.weight("one", np.array(1, np.int64))
    length = g.node("Squeeze", [g.node("Shape", ["ids"], "ids_length", start=1)], "length")
    positions = g.node("Range", [zero, length, one], "places")
    row, column = (g.node("Unsqueeze", [positions, g.ints(axis)], f"places.{axis}") for axis in (0, 1))
    distance = g.node("Sub", [row, column], "distance")
    index = g.node("Add", [distance, g.weight("most", np.array(MAX_TEXT_TOKENS - 1, np.int64))], "distance_index")
    pairs = g.node("Gather", [g.weight("position_bias", by_distance), index], "bias_pairs", axis=1)
    return g.node("Unsqueeze", [pairs, g.ints(0)], "bias")


def _attention(g: GraphWriter, x: str, name: str, config: TextConfig, weights: Weights, bias: str, mask: str) -> str:
    """T5's attention: unscaled, with a position bias."""
    parts = [g.product(x, weights[f"{name}.{part}.weight"], f"{name}.{part}") for part in "qkv"]
    inputs = [*parts, "", mask, bias]
    attended = g.node("MultiHeadAttention", inputs, f"{name}.found", MICROSOFT, num_heads=config.num_heads, scale=1.0)
    return g.product(attended, weights[f"{name}.o.weight"], f"{name}.o")


def _forward(g: GraphWriter, x: str, name: str, config: TextConfig, weights: Weights) -> str:
    kind = _FORWARDS[config.feed_forward_proj]
    if kind == "Relu":
        y = g.node("Relu", [g.product(x, weights[f"{name}.wi.weight"], f"{name}.wi")], f"{name}.relu")
    else:
        opened = g.product(x, weights[f"{name}.wi_0.weight"], f"{name}.wi_0")
        gate = g.node("Gelu", [opened], f"{name}.gate", approximate="tanh")
        y = g.node("Mul", [gate, g.product(x, weights[f"{name}.wi_1.weight"], f"{name}.wi_1")], f"{name}.gated")
    return g.product(y, weights[f"{name}.wo.weight"], f"{name}.wo")


def _norm(g: GraphWriter, x: str, name: str, config: TextConfig, weights: Weights, output: str | None = None) -> str:
    """T5's normalization: by the root mean square, without mean and bias."""
    gain = g.weight(f"{name}.weight", weights[f"{name}.weight"])
    epsilon = config.layer_norm_epsilon
    return g.node("SimplifiedLayerNormalization", [x, gain], output or name, axis=-1, epsilon=epsilon)
