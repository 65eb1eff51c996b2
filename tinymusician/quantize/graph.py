"""Builds an ONNX graph node by node; independent of any model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tinymusician.runtime.session import Array

OPSET = 20
MICROSOFT = "com.microsoft"
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
}
MOST_IN_ONE_FILE = 1_500_000_000
"""The maximum bytes of weights of a graph in one file; a protocol buffer is limited to two gibibytes."""
Axes = Sequence[int | str]


class GraphWriter:
    """Collects nodes, weights, inputs and outputs of one graph. Every method returns the name of what it added."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: str, axes: Axes) -> str:
        """Declare an input; a named axis may have any size."""
        self._inputs.append(helper.make_tensor_value_info(name, TYPES[dtype], list(axes)))
        return name

    def output(self, name: str, dtype: str, axes: Axes) -> str:
        """Declare an output that a node computes."""
        self._outputs.append(helper.make_tensor_value_info(name, TYPES[dtype], list(axes)))
        return name

    def weight(self, name: str, value: Array) -> str:
        """Add a constant; the same name twice is the same constant."""
        if name not in self._weights:
            self._weights[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def ints(self, *values: int) -> str:
        """A constant vector of int64."""
        return self.weight("ints_" + "_".join(str(value) for value in values), np.array(values, np.int64))

    def node(self, kind: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: object) -> str:
        """Add a node with one output, which is also its name."""
        self._nodes.append(helper.make_node(kind, list(inputs), [output], name=output, domain=domain, **attributes))
        return output

    def nodes(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: object
    ) -> str:
        """Add a node with several outputs; it is named after the first."""
        made = helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], domain=domain, **attributes)
        self._nodes.append(made)
        return outputs[0]

    def product(self, x: str, weight: Array, name: str, bias: Array | None = None) -> str:
        """X · weightᵀ (+ bias), with a weight in PyTorch's layout, [out, in]."""
        result = self.node("MatMul", [x, self.weight(f"{name}.weight", weight.T)], name)
        if bias is None:
            return result
        return self.node("Add", [result, self.weight(f"{name}.bias", bias)], f"{name}.biased")

    def norm(self, x: str, weight: Array, bias: Array, name: str, epsilon: float = 1e-5) -> str:
        """Layer normalization over the last axis."""
        gain, shift = self.weight(f"{name}.weight", weight), self.weight(f"{name}.bias", bias)
        return self.node("LayerNormalization", [x, gain, shift], name, axis=-1, epsilon=epsilon)

    def model(self) -> onnx.ModelProto:
        """The complete model."""
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, list(self._weights.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="tinymusician")


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model as one file if it fits into a protocol buffer, else with its weights in a file beside it."""
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(
        model,
        str(path),
        save_as_external_data=size > MOST_IN_ONE_FILE,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
    )
