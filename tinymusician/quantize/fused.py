"""MusicGen's decoder as ONNX in the fused format: every weight once, nothing computed twice, caches in place.

There are two graphs. `cross` runs once per prompt: text states to the cross-attention keys and values of every layer.
`decoder` runs once per step: one code per codebook in, the logits of all codebooks out. Its self-attention caches are
buffers [B, H, M, D] of fixed length that input and output share, and every row of a batch has its own position.

Shapes: B row, K codebook, V vocabulary, L text token, E text width, H head, D head width, M cache length. The
architecture is that of transformers' `MusicgenForCausalLM`, against which the tests compare the graphs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx

from tinymusician.errors import ModelError
from tinymusician.models.protocols import DecoderConfig, MusicgenConfig
from tinymusician.quantize.graph import MICROSOFT, GraphWriter

Weights = Mapping[str, npt.NDArray[np.float32]]
_BODY = "decoder.model.decoder."


def cross_graph(config: MusicgenConfig, weights: Weights) -> onnx.ModelProto:
    """`text_states` [B, L, E] and `text_mask` [B, L] to `cross_key.N` and `cross_value.N`, each [B, H, L, D].

    For a guidance-conditioned student, the scale `guidance` [B] is another input.
    """
    decoder, text_width = config.decoder, config.text_encoder.hidden_size
    g = GraphWriter("cross")
    states = g.input("text_states", "float32", ["B", "L", text_width])
    mask = g.input("text_mask", "int32", ["B", "L"])
    if "guidance_embedding.first.weight" in weights:
        states = g.node("Add", [states, _guidance_embedding(g, config.guidance_range, weights)], "told_states")
    if "enc_to_dec_proj.weight" in weights:
        bias = weights["enc_to_dec_proj.bias"]
        states = g.product(states, weights["enc_to_dec_proj.weight"], "project", bias)
    mask_float = g.node("Cast", [g.node("Unsqueeze", [mask, g.ints(2)], "mask_column")], "mask_float", to=1)
    states = g.node("Mul", [states, mask_float], "states")
    heads, size = decoder.num_attention_heads, decoder.hidden_size // decoder.num_attention_heads
    for layer in range(decoder.num_hidden_layers):
        for role, part in (("key", "k_proj"), ("value", "v_proj")):
            weight = weights[f"{_BODY}layers.{layer}.encoder_attn.{part}.weight"]
            flat = g.product(states, weight, f"layers.{layer}.{role}")
            split = g.node("Reshape", [flat, g.ints(0, 0, heads, size)], f"layers.{layer}.{role}.heads")
            g.node("Transpose", [split], f"cross_{role}.{layer}", perm=[0, 2, 1, 3])
            g.output(f"cross_{role}.{layer}", "float32", ["B", heads, "L", size])
    return g.model()


def _guidance_embedding(g: GraphWriter, range_: Sequence[float], weights: Weights) -> str:
    """The embedding [B, 1, E] of a scale, as in `tinymusician.models.guidance`."""
    low, high = range_
    scale = g.node("Unsqueeze", [g.input("guidance", "float32", ["B"]), g.ints(1)], "guidance.column")
    begin = g.weight("guidance.low", np.array(low, np.float32))
    width = g.weight("guidance.width", np.array(high - low, np.float32))
    position = g.node("Div", [g.node("Sub", [scale, begin], "guidance.above"), width], "guidance.place")
    waves = weights["guidance_embedding.first.weight"].shape[1] // 2
    turns = g.weight("guidance.turns", (math.pi * np.arange(1, waves + 1)).astype(np.float32))
    angles = g.node("Mul", [position, turns], "guidance.angles")
    both = [g.node(kind, [angles], f"guidance.{kind.lower()}") for kind in ("Sin", "Cos")]
    x = g.node("Concat", both, "guidance.waves", axis=-1)
    x = _biased(g, x, "guidance_embedding.first", weights)
    x = g.node("Mul", [x, g.node("Sigmoid", [x], "guidance.gate")], "guidance.silu")
    return g.node("Unsqueeze", [_biased(g, x, "guidance_embedding.last", weights), g.ints(1)], "guidance.embedding")


def _biased(g: GraphWriter, x: str, name: str, weights: Weights) -> str:
    return g.product(x, weights[f"{name}.weight"], name, weights[f"{name}.bias"])


def decoder_graph(config: MusicgenConfig, weights: Weights) -> onnx.ModelProto:
    """`codes` [B, K] at `positions` [B] to `logits` [B, K, V]; caches are inputs and outputs.

    Raises:
        ModelError: the activation is not GELU, or ONNX Runtime's attention does not support the heads' width.
    """
    decoder = config.decoder
    if decoder.activation_function != "gelu":
        raise ModelError(f"decoder: activation {decoder.activation_function!r}; the fused graph knows 'gelu' only")
    width = decoder.hidden_size // decoder.num_attention_heads
    if width % 8:
        raise ModelError(f"decoder: heads of width {width}; a multiple of 8 is needed")
    return _DecoderGraphBuilder(decoder, weights).graph()


class _DecoderGraphBuilder:
    """Builds the decoder's nodes in the order of a step."""

    def __init__(self, config: DecoderConfig, weights: Weights) -> None:
        self.config, self.weights, self.g = config, weights, GraphWriter("decoder")
        self.heads, self.size = config.num_attention_heads, config.hidden_size // config.num_attention_heads

    def graph(self) -> onnx.ModelProto:
        g, config = self.g, self.config
        g.input("codes", "int64", ["B", config.num_codebooks])
        g.input("positions", "int32", ["B"])
        g.input("text_mask", "int32", ["B", "L"])
        last = g.node("ReduceMax", ["positions"], "last_position", keepdims=0)
        one = g.weight("one", np.array(1, np.int32))
        g.node("Add", [last, one], "longest")
        x = self._embed()
        for layer in range(config.num_hidden_layers):
            x = self._layer(x, layer)
        x = g.norm(x, *self._norm("layer_norm"), "layer_norm")
        heads = [self.weights[f"decoder.lm_heads.{book}.weight"] for book in range(config.num_codebooks)]
        flat = g.product(x, np.concatenate(heads), "lm_heads")
        g.node("Reshape", [flat, g.ints(0, config.num_codebooks, -1)], "logits")
        g.output("logits", "float32", ["B", config.num_codebooks, config.vocab_size])
        return g.model()

    def _embed(self) -> str:
        """The sum of the codebooks' embeddings, from one table, plus the position's: [B, 1, width]."""
        g, num_codebooks = self.g, self.config.num_codebooks
        tables = [self.weights[f"{_BODY}embed_tokens.{book}.weight"] for book in range(num_codebooks)]
        starts = np.arange(num_codebooks, dtype=np.int64) * len(tables[0])
        rows = g.node("Add", ["codes", g.weight("codebook_starts", starts)], "rows")
        table = np.concatenate(tables)
        embeddings = g.node("Gather", [g.weight("embed_tokens", table), rows], "code_embeddings")
        summed = g.node("ReduceSum", [embeddings, g.ints(1)], "code_embedding", keepdims=1)
        positions = g.weight("embed_positions", self.weights[f"{_BODY}embed_positions.weights"])
        position = g.node(
            "Unsqueeze", [g.node("Gather", [positions, "positions"], "place"), g.ints(1)], "place_embedding"
        )
        return g.node("Add", [summed, position], "embedding")

    def _layer(self, x: str, layer: int) -> str:
        g, name = self.g, f"layers.{layer}"
        y = g.norm(x, *self._norm(f"{name}.self_attn_layer_norm"), f"{name}.self_attn_layer_norm")
        x = g.node("Add", [x, self._self_attention(y, layer)], f"{name}.after_self")
        y = g.norm(x, *self._norm(f"{name}.encoder_attn_layer_norm"), f"{name}.encoder_attn_layer_norm")
        x = g.node("Add", [x, self._cross_attention(y, layer)], f"{name}.after_cross")
        y = g.norm(x, *self._norm(f"{name}.final_layer_norm"), f"{name}.final_layer_norm")
        wide = g.node("Gelu", [g.product(y, self._weight(f"{name}.fc1"), f"{name}.fc1")], f"{name}.gelu", MICROSOFT)
        return g.node("Add", [x, g.product(wide, self._weight(f"{name}.fc2"), f"{name}.fc2")], f"{name}.after_feed")

    def _self_attention(self, y: str, layer: int) -> str:
        g, name = self.g, f"layers.{layer}.self_attn"
        packed = np.concatenate([self._weight(f"{name}.{part}_proj") for part in "qkv"])
        qkv = g.product(y, packed, f"{name}.qkv")
        axes: list[int | str] = ["B", self.heads, "M", self.size]
        past = [g.input(f"past_{role}.{layer}", "float32", axes) for role in ("key", "value")]
        outputs = [g.output(f"kept_{role}.{layer}", "float32", axes) for role in ("key", "value")]
        attended = g.nodes(
            "GroupQueryAttention",
            [qkv, "", "", *past, "positions", "longest"],
            [f"{name}.found", *outputs],
            MICROSOFT,
            num_heads=self.heads,
            kv_num_heads=self.heads,
        )
        return g.product(attended, self._weight(f"{name}.out_proj"), f"{name}.out_proj")

    def _cross_attention(self, y: str, layer: int) -> str:
        g, name = self.g, f"layers.{layer}.encoder_attn"
        query = g.product(y, self._weight(f"{name}.q_proj"), f"{name}.q_proj")
        axes: list[int | str] = ["B", self.heads, "L", self.size]
        sources = [g.input(f"cross_{role}.{layer}", "float32", axes) for role in ("key", "value")]
        inputs = [query, *sources, "", "text_mask"]
        attended = g.node("MultiHeadAttention", inputs, f"{name}.found", MICROSOFT, num_heads=self.heads)
        return g.product(attended, self._weight(f"{name}.out_proj"), f"{name}.out_proj")

    def _weight(self, name: str) -> npt.NDArray[np.float32]:
        return self.weights[f"{_BODY}{name}.weight"]

    def _norm(self, name: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        return self.weights[f"{_BODY}{name}.weight"], self.weights[f"{_BODY}{name}.bias"]
