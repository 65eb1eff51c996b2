"""A precision plan applied to the float32 graphs of a bundle, by ONNX Runtime's own quantizers."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tinymusician.quantize.graph import MICROSOFT, save
from tinymusician.quantize.precision import Plan, Precision

GRAPHS = ("text_encoder", "cross", "decoder", "codec_decoder", "codec_encoder")
_GROUPS = {
    "text_encoder": {"embedding": "text_embedding"},
    "decoder": {"code_embeddings": "embeddings", "place": "embeddings", "lm_heads": "lm_heads"},
}
_REST = {"text_encoder": "text", "cross": "cross", "codec_decoder": "codec", "codec_encoder": "codec"}


_WEIGHTED = ("MatMul", "Gather", "Conv", "ConvTranspose", "LSTM")
_EXACT = ("bias_pairs",)
"""Small tables that stay in float32."""


def apply_plan(plan: Plan, source: Path, target: Path) -> None:
    """Write the graphs of `source`, quantized by `plan`, into `target`, with everything else that lies there."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix == ".json":
            shutil.copyfile(path, target / path.name)
    for name in GRAPHS:
        if (source / f"{name}.onnx").exists():
            quantize_graph(plan, name, source / f"{name}.onnx", target / f"{name}.onnx")


def quantize_graph(plan: Plan, name: str, source: Path, target: Path) -> None:
    """Write one graph, quantized by `plan`."""
    if plan.uniform_int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        known = {"DefaultTensorType": TensorProto.FLOAT}
        quantize_dynamic(str(source), str(target), per_channel=True, weight_type=QuantType.QInt8, extra_options=known)
        return
    model = onnx.load(str(source))
    chosen: dict[Precision, list[str]] = {"float32": [], "float16": [], "int8": [], "int4": []}
    for node in model.graph.node:
        if node.op_type in _WEIGHTED and node.name not in _EXACT:
            chosen[plan.of(group_of(name, node.name))].append(node.name)
    model = _to_blocks(model, chosen["int8"], 8, plan)
    model = _to_blocks(model, chosen["int4"], 4, plan)
    _to_float16(model, set(chosen["float16"]))
    save(model, target)


def group_of(graph: str, node: str) -> str:
    """The plan's group that a node of a graph belongs to."""
    if layer := re.match(r"layers\.\d+", node) if graph == "decoder" else None:
        return layer[0]
    return _GROUPS.get(graph, {}).get(node) or _REST[graph]


def _to_blocks(model: onnx.ModelProto, nodes: list[str], bits: int, plan: Plan) -> onnx.ModelProto:
    """Keep the weights of these products in blocks of few bits."""
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
    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.WARNING)
    quantizer = MatMulNBitsQuantizer(model, nodes_to_exclude=others, algo_config=config)
    quantizer.process()
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


def _tables_to_blocks(model: onnx.ModelProto, nodes: set[str], bits: int, block: int) -> None:
    """Keep the rows of these tables in blocks: `GatherBlockQuantized`, symmetric about the middle of its range."""
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


def blocks_of(table: Any, bits: int, block: int) -> tuple[Any, Any]:
    """Rows [N, D] as unsigned codes [N, D] about 2^(bits-1), and float32 scales [N, D / block]."""
    middle = 2 ** (bits - 1)
    pieces = table.reshape(len(table), -1, block)
    scales = np.abs(pieces).max(-1) / (middle - 1)
    safe = np.where(scales == 0, 1, scales)[..., None]
    codes = np.clip(np.round(pieces / safe), 1 - middle, middle - 1) + middle
    return codes.reshape(table.shape).astype(np.uint8), scales.astype(np.float32)


def _to_float16(model: onnx.ModelProto, nodes: set[str]) -> None:
    """Keep the weights of these nodes in float16, widened by a Cast that ONNX Runtime folds when it loads the graph."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    wanted = dict.fromkeys(
        name
        for node in model.graph.node
        if node.name in nodes
        for name in node.input
        if name in weights and weights[name].data_type == TensorProto.FLOAT
    )
    casts = []
    for name in wanted:
        narrow = numpy_helper.to_array(weights[name]).astype(np.float16)
        _replace(model, name, {f"{name}.float16": narrow})
        casts.append(helper.make_node("Cast", [f"{name}.float16"], [name], name=f"{name}.widen", to=TensorProto.FLOAT))
    nodes_after = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes_after])


def _replace(model: onnx.ModelProto, name: str, arrays: dict[str, Any]) -> None:
    """Take a weight out and put others in."""
    place = next(index for index, tensor in enumerate(model.graph.initializer) if tensor.name == name)
    del model.graph.initializer[place]
    model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in arrays.items())
