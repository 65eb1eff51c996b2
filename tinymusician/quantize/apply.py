"""Applies a precision plan to the float32 graphs of a bundle, with ONNX Runtime's quantizers."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tinymusician.quantize.graph import MICROSOFT, MOST_IN_ONE_FILE, save
from tinymusician.quantize.precision import PrecisionPlan
from tinymusician.runtime.bundle_manifest import Role
from tinymusician.runtime.session import Array
from tinymusician.settings import Precision

GRAPHS: tuple[Role, ...] = ("text_encoder", "cross", "decoder", "codec_decoder", "codec_encoder")
_GROUPS = {
    "text_encoder": {"embedding": "text_embedding"},
    "decoder": {"code_embeddings": "embeddings", "place": "embeddings", "lm_heads": "lm_heads.0"},
}
_REST = {"text_encoder": "text", "cross": "cross", "codec_decoder": "codec", "codec_encoder": "codec_encoder"}


WEIGHTED = ("MatMul", "Gather", "Conv", "ConvTranspose", "LSTM")
"""The operators whose weights a plan covers."""
_EXACT = ("bias_pairs",)
"""Small tables that stay in float32."""
_SINK_INPUT = 11
"""The index of GroupQueryAttention's input with the heads' sinks; the scales of keys and values follow it."""
CacheRanges = Sequence[tuple[Array, Array]]
"""By layer the largest absolute key and value of each channel, [H, D] each."""


def apply_plan(plan: PrecisionPlan, source: Path, target: Path, ranges: CacheRanges | None = None) -> None:
    """Write the graphs of `source`, quantized by `plan`, into `target`, with the other files of the folder.

    `ranges` are needed if the plan has an int8 cache.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix == ".json":
            shutil.copyfile(path, target / path.name)
    for name in GRAPHS:
        if (source / f"{name}.onnx").exists():
            quantize_graph(plan, name, source / f"{name}.onnx", target / f"{name}.onnx", ranges)


def quantize_graph(
    plan: PrecisionPlan, name: str, source: Path, target: Path, ranges: CacheRanges | None = None
) -> None:
    """Write one graph of the fused format, quantized by `plan`."""
    if plan.uniform_int8 and name != "codec_encoder":
        quantize_uniformly(source, target)
        return
    model = onnx.load(str(source))
    if name == "decoder":
        _split_heads(model, plan)
    model = quantize_model(plan, model, partial(group_of, name))
    if name == "decoder" and plan.cache == "int8" and ranges is not None:
        _cache_to_int8(model, ranges)
    save(model, target)


def quantize_uniformly(source: Path, target: Path) -> None:
    """ONNX Runtime's dynamic quantization of everything in a graph."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = {"DefaultTensorType": TensorProto.FLOAT}
    with quietly():
        quantize_dynamic(
            str(source),
            str(target),
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=_float_bytes(onnx.load(str(source), load_external_data=False))
            > 4 * MOST_IN_ONE_FILE,
            extra_options=options,
        )


def _float_bytes(model: onnx.ModelProto) -> int:
    return sum(4 * int(np.prod(tensor.dims)) for tensor in model.graph.initializer)


@contextmanager
def quietly() -> Iterator[None]:
    """Silence quantizers and exporters, which log every node."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def quantize_model(plan: PrecisionPlan, model: onnx.ModelProto, group: Callable[[str], str]) -> onnx.ModelProto:
    """Give every node with weights the precision of its group; `group` maps a node's name to it.

    A table whose rows are not a whole number of blocks becomes float16 instead of a lower precision.
    """
    tables = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) > 1}
    chosen: dict[Precision, list[str]] = {"float32": [], "float16": [], "int8": [], "int4": []}
    for node in model.graph.node:
        if node.op_type in WEIGHTED and node.name not in _EXACT and any(name in tables for name in node.input):
            precision = plan.of(group(node.name))
            odd = node.op_type == "Gather" and tables[node.input[0]].dims[-1] % plan.block_size
            chosen["float16" if odd and precision in ("int8", "int4") else precision].append(node.name)
    if plan.kernel == "channels":
        chosen["int8"] = _to_channels(model, chosen["int8"])
    model = _to_blocks(model, chosen["int8"], 8, plan)
    model = _to_blocks(model, chosen["int4"], 4, plan)
    _to_float16(model, set(chosen["float16"]))
    return model


def group_of(graph: str, node: str) -> str:
    """The plan's group of a graph's node; one product of all heads counts as the first head's."""
    if part := re.match(r"layers\.\d+|lm_heads\.\d+", node) if graph == "decoder" else None:
        return part[0]
    return _GROUPS.get(graph, {}).get(node) or _REST[graph]


def _to_channels(model: onnx.ModelProto, nodes: list[str]) -> list[str]:
    """Quantize these products dynamically in place, with one scale per channel; returns the other nodes."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    products = {node.name for node in model.graph.node if node.name in nodes and node.op_type == "MatMul"}
    if products:
        with quietly(), tempfile.TemporaryDirectory() as scratch:
            target = f"{scratch}/quantized.onnx"
            options = {"DefaultTensorType": TensorProto.FLOAT}
            quantize_dynamic(
                model,
                target,
                per_channel=True,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=sorted(products),
                use_external_data_format=_float_bytes(model) > 4 * MOST_IN_ONE_FILE,
                extra_options=options,
            )
            model.CopyFrom(onnx.load(target))
    return [name for name in nodes if name not in products]


def _split_heads(model: onnx.ModelProto, plan: PrecisionPlan) -> None:
    """Split the one product of all heads, if a plan gives the codebooks' heads several precisions."""
    num_codebooks = (
        next(value for value in model.graph.input if value.name == "codes").type.tensor_type.shape.dim[1].dim_value
    )
    if len({plan.of(f"lm_heads.{book}") for book in range(num_codebooks)}) == 1:
        return
    index, node = next((index, node) for index, node in enumerate(model.graph.node) if node.name == "lm_heads")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    parts = np.split(numpy_helper.to_array(weight), num_codebooks, axis=1)
    names = [f"lm_heads.{book}" for book in range(num_codebooks)]
    _replace(
        model, node.input[1], {f"{name}.weight": np.ascontiguousarray(p) for name, p in zip(names, parts, strict=True)}
    )
    made = [helper.make_node("MatMul", [node.input[0], f"{name}.weight"], [name], name=name) for name in names]
    made.append(helper.make_node("Concat", names, ["lm_heads"], name="lm_heads.joined", axis=-1))
    del model.graph.node[index]
    for offset, new in enumerate(made):
        model.graph.node.insert(index + offset, new)


def _cache_to_int8(model: onnx.ModelProto, ranges: CacheRanges) -> None:
    """Store keys and values of self-attention in 8 bits, with one scale per channel of every head.

    With 8 bits ONNX Runtime's tiled attention is slower for one query than its plain one: a quarter of a step at
    position 1,450. Heads with a sink use the plain one, and a sink of this weight takes nothing from the softmax.
    """
    for value in (*model.graph.input, *model.graph.output):
        if re.match(r"(past|kept)_(key|value)\.", value.name):
            value.type.tensor_type.elem_type = TensorProto.INT8
    attentions = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    sink = "no_sink"
    model.graph.initializer.append(numpy_helper.from_array(np.full(len(ranges[0][0]), -1e30, np.float32), sink))
    for node, (keys, values) in zip(attentions, ranges, strict=True):
        scales = {f"{node.name}.{role}_scale": part for role, part in (("key", keys), ("value", values))}
        for name, largest in scales.items():
            scale = (np.maximum(largest, 1e-6) / 127).astype(np.float32)[None, :, None, :]
            model.graph.initializer.append(numpy_helper.from_array(scale, name))
        node.input.extend([""] * (_SINK_INPUT - len(node.input)) + [sink, *scales])
        for kind in ("k", "v"):
            node.attribute.append(helper.make_attribute(f"{kind}_quant_type", "PER_CHANNEL"))
        node.attribute.append(helper.make_attribute("kv_cache_bit_width", 8))


def _to_blocks(model: onnx.ModelProto, nodes: list[str], bits: int, plan: PrecisionPlan) -> onnx.ModelProto:
    """Quantize the weights of these products in blocks."""
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        HQQWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    kinds = {node.name: node.op_type for node in model.graph.node}
    products = {name for name in nodes if kinds[name] == "MatMul"}
    others = [name for name, kind in kinds.items() if kind == "MatMul" and name not in products]
    _tables_to_blocks(model, {name for name in nodes if kinds[name] == "Gather"}, bits, plan.block_size)
    if not products:
        return model
    fitted = plan.method == "hqq" and bits == 4
    config = (
        HQQWeightOnlyQuantConfig(block_size=plan.block_size, bits=bits)
        if fitted
        else DefaultWeightOnlyQuantConfig(
            block_size=plan.block_size, is_symmetric=plan.symmetric, accuracy_level=4, bits=bits
        )
    )
    with quietly():
        quantizer = MatMulNBitsQuantizer(model, nodes_to_exclude=others, algo_config=config)
        quantizer.process()
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


def _tables_to_blocks(model: onnx.ModelProto, nodes: set[str], bits: int, block: int) -> None:
    """Quantize the rows of these tables in blocks: `GatherBlockQuantized`, symmetric about the middle of its range."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.name in nodes]:
        table = numpy_helper.to_array(weights[node.input[0]])
        codes, scales = blocks_of(table, bits, block)
        packed = codes if bits == 8 else codes[:, 0::2] | (codes[:, 1::2] << 4)
        _replace(model, node.input[0], {f"{node.input[0]}.codes": packed, f"{node.input[0]}.scales": scales})
        made = helper.make_node(
            "GatherBlockQuantized",
            [f"{node.input[0]}.codes", node.input[1], f"{node.input[0]}.scales"],
            list(node.output),
            name=node.name,
            domain=MICROSOFT,
            bits=bits,
            block_size=block,
            gather_axis=0,
            quantize_axis=1,
        )
        node.CopyFrom(made)


def blocks_of(table: Array, bits: int, block: int) -> tuple[Array, Array]:
    """Rows [N, D] as unsigned codes [N, D] about 2^(bits-1), and float32 scales [N, D / block]."""
    middle = 2 ** (bits - 1)
    pieces = table.reshape(len(table), -1, block)
    scales = np.abs(pieces).max(-1) / (middle - 1)
    safe = np.where(scales == 0, 1, scales)[..., None]
    codes = np.clip(np.round(pieces / safe), 1 - middle, middle - 1) + middle
    return codes.reshape(table.shape).astype(np.uint8), scales.astype(np.float32)


def _to_float16(model: onnx.ModelProto, nodes: set[str]) -> None:
    """Store the weights of these nodes in float16, followed by a Cast that ONNX Runtime folds on loading."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    renames = dict.fromkeys(
        name
        for node in model.graph.node
        if node.name in nodes
        for name in node.input
        if name in weights and weights[name].data_type == TensorProto.FLOAT
    )
    casts = []
    for name in renames:
        prune = numpy_helper.to_array(weights[name]).astype(np.float16)
        _replace(model, name, {f"{name}.float16": prune})
        casts.append(helper.make_node("Cast", [f"{name}.float16"], [name], name=f"{name}.widen", to=TensorProto.FLOAT))
    nodes_after = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes_after])


def _replace(model: onnx.ModelProto, name: str, arrays: dict[str, Array]) -> None:
    """Replace a weight by others."""
    index = next(index for index, tensor in enumerate(model.graph.initializer) if tensor.name == name)
    del model.graph.initializer[index]
    model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in arrays.items())
