"""Which operators of a graph an execution provider lacks, and ONNX Runtime's verdict for phones.

Operators that a provider lacks run on the CPU, and every change of provider costs a copy. Sources: ONNX Runtime's CPU
provider has all operators that its own tools write; CoreML by ONNX Runtime's usability checker; WebGPU by the table of
operators of onnxruntime-web 1.24.3 (docs/webgpu-operators.md).
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import onnx

from tinymusician.quantize.results import ProviderSupport

_ON_WEBGPU = (
    "Add Cast Concat Conv ConvTranspose Div Elu Equal Erf Expand Flatten Gather GatherBlockQuantized Gelu Gemm "
    "GroupQueryAttention If LayerNormalization MatMul MatMulNBits Mul MultiHeadAttention Not Pad Pow Range ReduceMax "
    "ReduceMean ReduceSum Relu Reshape Shape SimplifiedLayerNormalization Slice Softmax Split Sqrt Squeeze Sub Tanh "
    "Tile Transpose Unsqueeze Where Identity Constant ConstantOfShape"
)
WEBGPU = frozenset(_ON_WEBGPU.split())
"""The operators of a MusicGen's graphs that onnxruntime-web runs on WebGPU, or that need no computation."""


def provider_support(folder: Path) -> list[ProviderSupport]:
    """The support of each provider for every graph in `folder`."""
    results = []
    for path in sorted(folder.rglob("*.onnx")):
        kinds = operators(onnx.load(str(path), load_external_data=False).graph)
        results.append(ProviderSupport(path.stem, "CPU (x86, ARM)", (), "runs whole"))
        results.append(coreml(path))
        lacks = tuple(sorted(kinds - WEBGPU))
        results.append(
            ProviderSupport(path.stem, "WebGPU", lacks, "runs whole" if not lacks else "the rest runs on the CPU")
        )
    return results


def operators(graph: onnx.GraphProto) -> set[str]:
    """The operator types of a graph, including those of its subgraphs."""
    names = {node.op_type for node in graph.node}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                names |= operators(attribute.g)
    return names


def coreml(path: Path) -> ProviderSupport:
    """The verdict of ONNX Runtime's `check_onnx_model_mobile_usability`."""
    from onnxruntime.tools.mobile_helpers.usability_checker import analyze_model

    messages = _Messages()
    logger = logging.Logger("usability")  # of its own: what it says is for the report, not for the log
    logger.addHandler(messages)
    try:
        analyze_model(path, logger=logger)  # its answer is of NNAPI, too
    except Exception as error:  # of any of ONNX Runtime's parts; the report says what, and goes on
        return ProviderSupport(path.stem, "CoreML", (), f"the checker failed: {type(error).__name__}")
    program = messages.text[messages.text.rfind("Checking CoreML MLProgram") :]
    lacking = re.findall(r"Unsupported ops: (\S+)", program)
    lacks = tuple(name.partition(":")[2] for name in lacking[0].split(",")) if lacking else ()
    return ProviderSupport(path.stem, "CoreML", lacks, coreml_gain(program))


def coreml_gain(program: str) -> str:
    """The checker's verdict on a CoreML program, with the graph's shapes as they are or fixed."""
    suitable = re.findall(r"should perform well with CoreML MLProgram .*: (\w+)", program)
    return "the CPU is faster" if set(suitable) <= {"NO"} else "CoreML may be faster than the CPU"


class _Messages(logging.Handler):
    """Collects log messages, one line each."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"
