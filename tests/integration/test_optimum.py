"""Optimum's layout: the graphs agree with PyTorch in float32 and with a plan, in the files that its clients load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tinymusician.errors import ModelError
from tinymusician.models.musicgen import load_musicgen, load_tokenizer, model_location
from tinymusician.quantize.optimum import (
    apply_to_optimum,
    export_optimum,
    group_in_optimum,
    optimum_logits,
    optimum_wave,
)
from tinymusician.quantize.parity import ReferenceOutputs, check, measure
from tinymusician.quantize.precision import PrecisionPlan, load_plan
from tinymusician.quantize.providers import coreml, provider_support
from tinymusician.runtime.rollout import ForcedBatch

pytestmark = pytest.mark.slow

FILES = {"text_encoder", "decoder_model_merged", "encodec_decode", "build_delay_pattern_mask"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("optimum")
    export_optimum(model_location("band-small"), folder)
    return folder


@pytest.fixture(scope="module")
def reference() -> ReferenceOutputs:
    sequences = ForcedBatch(
        ["a slow fiddle reel", "a happy march"], np.random.default_rng(0).integers(0, 512, (2, 4, 12))
    )
    return ReferenceOutputs(load_musicgen("band-small"), load_tokenizer("band-small"), sequences)


def test_float32_is_pytorch(exported: Path, reference: ReferenceOutputs, tmp_path: Path) -> None:
    apply_to_optimum(load_plan("float32"), exported, tmp_path)
    assert {path.stem for path in (tmp_path / "onnx").glob("*.onnx")} == FILES
    assert (tmp_path / "config.json").exists()
    logits = optimum_logits(tmp_path, load_tokenizer("band-small"), reference.sequences)
    result = measure(reference, logits, optimum_wave(tmp_path, reference.sequences))
    check(result, "optimum", kl=1e-6, agreement=0.999, codec_snr=60)


def test_plan_applies_to_its_nodes(exported: Path, reference: ReferenceOutputs, tmp_path: Path) -> None:
    plan = PrecisionPlan(name="x", groups={"layers.1": "int8", "lm_heads": "int8"}, block_size=64)
    apply_to_optimum(plan, exported, tmp_path)
    merged = onnx.load(str(tmp_path / "onnx" / "decoder_model_merged.onnx"))
    branches = [attribute.g for node in merged.graph.node if node.op_type == "If" for attribute in node.attribute]
    assert len(branches) == 2
    for graph in branches:
        names = [node.name for node in graph.node if node.op_type == "MatMulNBits"]
        assert names
        assert all("layers.1" in name or "lm_heads" in name for name in names)
    logits = optimum_logits(tmp_path, load_tokenizer("band-small"), reference.sequences)
    result = measure(reference, logits, optimum_wave(tmp_path, reference.sequences))
    assert 1e-7 < max(result.kl) < 0.1


def test_groups() -> None:
    assert group_in_optimum("decoder_model", "/decoder/model/decoder/layers.3/self_attn/q_proj/MatMul") == "layers.3"
    assert group_in_optimum("decoder_model", "/decoder/model/decoder/layers.3/encoder_attn/k_proj/MatMul") == "cross"
    assert group_in_optimum("decoder_with_past_model", "/decoder/lm_heads.2/MatMul") == "lm_heads.2"
    assert group_in_optimum("text_encoder", "/encoder/shared/Gather") == "text_embedding"
    assert group_in_optimum("encodec_decode", "/decoder/layers.0/conv/Conv") == "codec"


def test_supported_providers(exported: Path) -> None:
    result = {(one.graph, one.provider): one for one in provider_support(exported)}
    assert "LSTM" in result["encodec_decode", "WebGPU"].missing
    assert "LSTM" in result["encodec_decode", "CoreML"].missing
    assert result["encodec_decode", "CoreML"].verdict == "the CPU is faster"
    assert result["decoder_model", "CPU (x86, ARM)"].missing == ()


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Optimum cannot export it") as caught:
        export_optimum(tmp_path, tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "verdict"), [("Relu", "CoreML may be faster than the CPU"), ("Floor", "the CPU is faster")]
)
def test_verdict_of_coreml(tmp_path: Path, kind: str, verdict: str) -> None:
    """Of CoreML alone: Android's NNAPI runs Floor, CoreML does not (ONNX Runtime's lists of operators)."""
    nodes = [onnx.helper.make_node(kind, [f"x{number}"], [f"x{number + 1}"]) for number in range(4)]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 8]) for name in ("x0", "x4")]
    graph = onnx.helper.make_graph(nodes, "four", ends[:1], ends[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "four.onnx")
    result = coreml(tmp_path / "four.onnx")
    assert (result.verdict, result.missing) == (verdict, () if kind == "Relu" else ("Floor",))


def test_a_graph_that_the_checker_cannot_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    result = coreml(tmp_path / "broken.onnx")
    assert (result.missing, result.verdict.partition(":")[0]) == ((), "the checker failed")
