"""A model that answers questions as two ONNX graphs.

    audio_encoder   `audio` [B, N] at 16 kHz to `embeddings` [B, T, W]: front end, encoder, projector
    lm              embeddings and `ids` [B, L] after a cache of P positions to the next token's `logits` [B, V]

The front end is in the graph, so every runtime computes the same spectra. One `lm` graph serves prefill and decoding:
the cache and the embeddings may be empty. Architectures are those of `tinymusician.models.audio_encoder` and of
transformers' Llama, against which the tests compare the graphs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from tinymusician.models.audio_encoder import PATCH, PATCH_ROWS, AudioEncoderShape
from tinymusician.models.audio_lm import AudioLMShape, LanguageModelShape
from tinymusician.models.spectral_front_end import (
    FLOOR,
    HOP,
    FrontEndConfig,
    Scale,
    fourier_kernels,
    mel_filters,
    pitch_kernels,
    pitch_padding,
)
from tinymusician.quantize.graph import MICROSOFT, GraphWriter
from tinymusician.runtime.session import Array

Weights = Mapping[str, Array]
_NORM_EPSILON = 1e-6
_MASKED = -1e30


def audio_encoder_graph(shape: AudioLMShape, weights: Weights) -> onnx.ModelProto:
    """Front end, encoder and projector; clips are at most one block of columns (9.9 s with 62 columns)."""
    g = GraphWriter("audio_encoder")
    audio = g.input("audio", "float32", ["B", "N"])
    patches = _patches(g, _spectra(g, audio, shape.audio_encoder.front_end), shape.audio_encoder, weights)
    vectors = _encode(g, patches, shape.audio_encoder, weights)
    hidden = _linear(g, vectors, "projector.linear1", weights)
    _linear(g, g.node("Relu", [hidden], "projector.relu"), "projector.linear2", weights, "embeddings")
    g.output("embeddings", "float32", ["B", "T", shape.lm.width])
    return g.model()


def lm_graph(shape: LanguageModelShape, weights: Weights) -> onnx.ModelProto:
    """The language model with its cache, `past_key.N` and `past_value.N` [B, heads, P, head width]."""
    g = GraphWriter("lm")
    embeddings = g.input("embeddings", "float32", ["B", "T", shape.width])
    ids = g.input("ids", "int64", ["B", "L"])
    table = g.weight("embed_tokens.weight", weights["lm.model.embed_tokens.weight"])
    x = g.node("Concat", [embeddings, g.node("Gather", [table, ids], "embed_tokens")], "sequence", axis=1)
    head, length = shape.width // shape.heads, _size(g, x, 1, "length")
    cache_axes: list[int | str] = ["B", shape.key_value_heads, "P", head]
    for layer in range(shape.layers):
        for kind in ("key", "value"):
            g.input(f"past_{kind}.{layer}", "float32", cache_axes)
    past = _size(g, "past_key.0", 2, "past")
    rotation, mask = _rotation(g, past, length, head, shape.rope_theta), _causal_mask(g, past, length)
    for layer in range(shape.layers):
        name = f"layers.{layer}"
        y = _rms_norm(g, x, f"lm.model.{name}.input_layernorm", weights, shape.norm_epsilon)
        x = g.node("Add", [x, _attention(g, y, layer, shape, weights, rotation, mask)], f"{name}.attended")
        y = _rms_norm(g, x, f"lm.model.{name}.post_attention_layernorm", weights, shape.norm_epsilon)
        x = g.node("Add", [x, _gated(g, y, name, weights)], f"{name}.output")
    last = g.node("Slice", [x, g.ints(-1), g.ints(2**31), g.ints(1)], "last")
    normed = _rms_norm(
        g, g.node("Squeeze", [last, g.ints(1)], "last.flat"), "lm.model.norm", weights, shape.norm_epsilon
    )
    g.product(normed, weights["lm.model.embed_tokens.weight"], "logits")
    g.output("logits", "float32", ["B", shape.vocabulary])
    for layer in range(shape.layers):
        for kind in ("key", "value"):
            g.output(f"present_{kind}.{layer}", "float32", ["B", shape.key_value_heads, "P+T+L", head])
    return g.model()


def _spectra(g: GraphWriter, audio: str, config: FrontEndConfig) -> str:
    """Normalized spectra [B, C, 80, F], as `SpectralFrontEnd`."""
    wave = g.node("Unsqueeze", [audio, g.ints(1)], "wave")
    power = _power(g, wave, fourier_kernels(), "spectrum")
    mel = g.node("MatMul", [g.weight("mel.filters", mel_filters()), power], "mel")
    channels = [_normalized(g, mel, config.mel, "mel")]
    if config.pitch is not None:
        bands = []
        for kernels in pitch_kernels():
            name = f"pitch.{kernels.shape[1]}"
            before, after = pitch_padding(kernels.shape[1])
            padded = g.node("Pad", [wave, g.ints(0, 0, before, 0, 0, after)], f"{name}.wave")
            bands.append(_power(g, padded, kernels, name))
        channels.append(_normalized(g, g.node("Concat", bands, "pitch", axis=1), config.pitch, "pitch"))
    stacked = [g.node("Unsqueeze", [channel, g.ints(1)], f"{channel}.channel") for channel in channels]
    return g.node("Concat", stacked, "spectra", axis=1)


def _power(g: GraphWriter, wave: str, kernels: Array, name: str) -> str:
    """The squared magnitudes of products with complex kernels, [B, bands, F]."""
    products = g.node("Conv", [wave, g.weight(f"{name}.kernels", kernels[:, None])], f"{name}.products", strides=[HOP])
    squares = g.node("Mul", [products, products], f"{name}.squares")
    g.nodes("Split", [squares], [f"{name}.real", f"{name}.imaginary"], axis=1, num_outputs=2)
    return g.node("Add", [f"{name}.real", f"{name}.imaginary"], f"{name}.power")


def _normalized(g: GraphWriter, power: str, scale: Scale, name: str) -> str:
    floor = g.weight("floor", np.array(FLOOR, np.float32))
    log = g.node("Log", [g.node("Add", [power, floor], f"{name}.floored")], f"{name}.log")
    centred = g.node("Sub", [log, g.weight(f"{name}.mean", np.array(scale.mean, np.float32))], f"{name}.centred")
    return g.node("Div", [centred, g.weight(f"{name}.std", np.array(scale.std, np.float32))], f"{name}.normalized")


def _patches(g: GraphWriter, spectra: str, shape: AudioEncoderShape, weights: Weights) -> str:
    """The embedded patches with positions and the class token in front, [B, 1 + 5 · T, width]."""
    width = shape.width
    rest = g.node("Mod", [g.node("Neg", [_size(g, spectra, 3, "frames")], "frames.negative"), g.ints(PATCH)], "rest")
    pads = g.node("Concat", [g.ints(0, 0, 0, 0, 0, 0, 0), rest], "pads", axis=0)
    padded = g.node("Pad", [spectra, pads], "spectra.padded")
    kernel = g.weight("patch_embed.weight", weights["audio_encoder.patch_embed.proj.weight"])
    bias = g.weight("patch_embed.bias", weights["audio_encoder.patch_embed.proj.bias"])
    grid = g.node("Conv", [padded, kernel, bias], "patch_embed", strides=[PATCH, PATCH])
    table = np.asarray(weights["audio_encoder.pos_embed"])
    positions = table[:, 1:].reshape(1, PATCH_ROWS, -1, width).transpose(0, 3, 1, 2)
    cut = [g.weight("positions", positions), g.ints(0), _size(g, grid, 3, "columns"), g.ints(3)]
    placed = g.node("Add", [grid, g.node("Slice", cut, "positions.cut")], "patches.placed")
    flat = g.node("Reshape", [placed, g.ints(0, width, -1)], "patches.flat")
    tokens = g.node("Transpose", [flat], "patches", perm=[0, 2, 1])
    token = g.weight("class_token", weights["audio_encoder.cls_token"] + table[:, :1])
    shape_of_token = g.node("Concat", [_size(g, spectra, 0, "batch"), g.ints(1, width)], "class_token.shape", axis=0)
    return g.node("Concat", [g.node("Expand", [token, shape_of_token], "class_token.each"), tokens], "tokens", axis=1)


def _encode(g: GraphWriter, x: str, shape: AudioEncoderShape, weights: Weights) -> str:
    """The transformer; patches of one time step are concatenated, [B, T, 5 · width]."""
    for index in range(shape.layers):
        source, name = f"audio_encoder.student_encoder.blocks.{index}", f"blocks.{index}"
        y = _layer_norm(g, x, f"{source}.norm1", weights)
        g.nodes(
            "Split",
            [_linear(g, y, f"{source}.attn.qkv", weights)],
            [f"{name}.{p}" for p in "qkv"],
            axis=-1,
            num_outputs=3,
        )
        parts = [f"{name}.{part}" for part in "qkv"]
        attended = g.node("MultiHeadAttention", parts, f"{name}.attention", MICROSOFT, num_heads=shape.heads)
        x = g.node("Add", [x, _linear(g, attended, f"{source}.attn.proj", weights)], f"{name}.attended")
        y = _layer_norm(g, x, f"{source}.norm2", weights)
        hidden = g.node("Gelu", [_linear(g, y, f"{source}.mlp.fc1", weights)], f"{name}.gelu")
        x = g.node("Add", [x, _linear(g, hidden, f"{source}.mlp.fc2", weights)], f"{name}.output")
    normed = _layer_norm(g, x, "audio_encoder.student_encoder.norm", weights)
    patches = g.node("Slice", [normed, g.ints(1), g.ints(2**31), g.ints(1)], "encoded")
    rows = g.node("Reshape", [patches, g.ints(0, PATCH_ROWS, -1, shape.width)], "encoded.rows")
    steps = g.node("Transpose", [rows], "encoded.steps", perm=[0, 2, 1, 3])
    return g.node("Reshape", [steps, g.ints(0, 0, shape.output_width)], "vectors")


def _attention(
    g: GraphWriter,
    x: str,
    layer: int,
    shape: LanguageModelShape,
    weights: Weights,
    rotation: tuple[str, str],
    mask: str,
) -> str:
    """Causal attention after the cache; several query heads share the keys and values of one."""
    name, source = f"layers.{layer}.attention", f"lm.model.layers.{layer}.self_attn"
    groups, head = shape.key_value_heads, shape.width // shape.heads

    def heads(part: str, count: int) -> str:
        product = g.product(x, weights[f"{source}.{part}_proj.weight"], f"{name}.{part}")
        split = g.node("Reshape", [product, g.ints(0, 0, count, head)], f"{name}.{part}.split")
        return g.node("Transpose", [split], f"{name}.{part}.heads", perm=[0, 2, 1, 3])

    query = _rotated(g, heads("q", shape.heads), f"{name}.q", rotation)
    new = {"key": _rotated(g, heads("k", groups), f"{name}.k", rotation), "value": heads("v", groups)}
    for kind, value in new.items():
        g.node("Concat", [f"past_{kind}.{layer}", value], f"present_{kind}.{layer}", axis=2)
    each = [g.node("Unsqueeze", [f"present_{kind}.{layer}", g.ints(2)], f"{name}.{kind}.1") for kind in new]
    grouped = g.node("Reshape", [query, g.ints(0, groups, shape.heads // groups, -1, head)], f"{name}.q.grouped")
    keys = g.node("Transpose", [each[0]], f"{name}.keys", perm=[0, 1, 2, 4, 3])
    scaled = g.node("Mul", [grouped, g.weight(f"scale.{head}", np.array(head**-0.5, np.float32))], f"{name}.scaled")
    scores = g.node("Add", [g.node("MatMul", [scaled, keys], f"{name}.scores"), mask], f"{name}.masked")
    shares = g.node("Softmax", [scores], f"{name}.shares", axis=-1)
    attended = g.node("MatMul", [shares, each[1]], f"{name}.sum")
    joined = g.node("Reshape", [attended, g.ints(0, shape.heads, -1, head)], f"{name}.joined")
    ordered = g.node("Transpose", [joined], f"{name}.ordered", perm=[0, 2, 1, 3])
    flat = g.node("Reshape", [ordered, g.ints(0, 0, shape.width)], f"{name}.flat")
    return g.product(flat, weights[f"{source}.o_proj.weight"], f"{name}.o")


def _gated(g: GraphWriter, x: str, layer: str, weights: Weights) -> str:
    """Llama's feed-forward layer: down(silu(gate(x)) · up(x))."""
    source, name = f"lm.model.{layer}.mlp", f"{layer}.mlp"
    gate = g.product(x, weights[f"{source}.gate_proj.weight"], f"{name}.gate")
    silu = g.node("Mul", [gate, g.node("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.silu")
    both = g.node("Mul", [silu, g.product(x, weights[f"{source}.up_proj.weight"], f"{name}.up")], f"{name}.gated")
    return g.product(both, weights[f"{source}.down_proj.weight"], f"{name}.down")


def _rotation(g: GraphWriter, past: str, length: str, head: int, theta: float) -> tuple[str, str]:
    """Cosines and sines of the new positions' angles, [S, head width] (RoPE, arXiv 2104.09864, in Llama's order)."""
    rates = 1 / theta ** (np.arange(0, head, 2) / head)
    end = g.node("Add", [past, length], "end")
    positions = g.node("Cast", [g.node("Range", [past, end, g.ints(1)], "positions.new")], "positions.float", to=1)
    column = g.node("Unsqueeze", [positions, g.ints(1)], "positions.column")
    both = g.weight("rope.rates", np.concatenate([rates, rates])[None].astype(np.float32))
    angles = g.node("Mul", [column, both], "angles")
    return g.node("Cos", [angles], "cosines"), g.node("Sin", [angles], "sines")


def _rotated(g: GraphWriter, x: str, name: str, rotation: tuple[str, str]) -> str:
    """Rotate the pairs (i, i + head / 2) of every head's channels."""
    g.nodes("Split", [x], [f"{name}.first", f"{name}.second"], axis=-1, num_outputs=2)
    negative = g.node("Neg", [f"{name}.second"], f"{name}.negative")
    turned = g.node("Concat", [negative, f"{name}.first"], f"{name}.turned", axis=-1)
    cosine = g.node("Mul", [x, rotation[0]], f"{name}.cosine")
    return g.node("Add", [cosine, g.node("Mul", [turned, rotation[1]], f"{name}.sine")], f"{name}.rotated")


def _causal_mask(g: GraphWriter, past: str, length: str) -> str:
    """0 where a position may attend, a large negative number at later positions, [S, P + S]."""
    zero, one = g.ints(0), g.ints(1)
    end = g.node("Add", [past, length], "mask.end")
    rows = g.node("Unsqueeze", [g.node("Range", [past, end, one], "mask.rows"), g.ints(1)], "mask.rows.1")
    columns = g.node("Unsqueeze", [g.node("Range", [zero, end, one], "mask.columns"), g.ints(0)], "mask.columns.1")
    later = g.node("Greater", [columns, rows], "mask.later")
    return g.node("Where", [later, _number(g, _MASKED), _number(g, 0.0)], "mask")


def _linear(g: GraphWriter, x: str, source: str, weights: Weights, output: str | None = None) -> str:
    product = g.node("MatMul", [x, g.weight(f"{source}.weight", weights[f"{source}.weight"].T)], source)
    return g.node("Add", [product, g.weight(f"{source}.bias", weights[f"{source}.bias"])], output or f"{source}.biased")


def _layer_norm(g: GraphWriter, x: str, source: str, weights: Weights) -> str:
    return g.norm(x, weights[f"{source}.weight"], weights[f"{source}.bias"], source, _NORM_EPSILON)


def _rms_norm(g: GraphWriter, x: str, source: str, weights: Weights, epsilon: float) -> str:
    gain = g.weight(f"{source}.weight", weights[f"{source}.weight"])
    return g.node("SimplifiedLayerNormalization", [x, gain], source, axis=-1, epsilon=epsilon)


def _size(g: GraphWriter, x: str, axis: int, name: str) -> str:
    """The size of an axis, a vector of one number."""
    return g.node("Shape", [x], name, start=axis, end=axis + 1)


def _number(g: GraphWriter, value: float) -> str:
    return g.weight(f"number_{value:g}", np.array([value], np.float32))
