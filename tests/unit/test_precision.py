"""Precision plans: valid plans, and the outputs of quantized graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from scipy.special import log_softmax

from tests.bundles import GRAPHS, write_bundle
from tinymusician.errors import PlanError
from tinymusician.models.musicgen import load_musicgen, model_location
from tinymusician.quantize.apply import CacheRanges, apply_plan, blocks_of, group_of
from tinymusician.quantize.precision import PrecisionPlan, load_plan, save_plan
from tinymusician.runtime.bundle import describe_files, read_manifest
from tinymusician.runtime.generator import GenerationRequest, MusicGenerator, load_generator
from tinymusician.runtime.rollout import ForcedBatch, rollout_with_ranges

PROMPT = "a fast fiddle reel"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float32")
    write_bundle(load_musicgen("band-large"), model_location("band-large") / "tokenizer.json", folder)
    return folder


def applied(plan: PrecisionPlan, exported: Path, folder: Path, ranges: CacheRanges | None = None) -> MusicGenerator:
    apply_plan(plan, exported, folder, ranges)
    roles: list[Any] = [(f"{role}.onnx", role, "") for role in GRAPHS]
    files = describe_files(folder, [*roles, ("tokenizer.json", "tokenizer", "")])
    manifest = read_manifest(exported).model_copy(update={"files": files})
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return load_generator(folder, threads=1)


def first_logits(generator: MusicGenerator, codes: Any) -> Any:
    """Logits along the given codes [K, S], [S, K, V]: the same sequence for every plan."""
    row = generator.decoder.add([generator.text(PROMPT)], codes.shape[1])[0]
    result = [generator.decoder.step(codes[None, :, step])[0].copy() for step in range(codes.shape[1])]
    generator.decoder.remove(row)
    return np.stack(result)


def divergence(one: Any, other: Any) -> float:
    """KL of softmaxes in nats, mean over positions and codebooks."""
    log_p, log_q = log_softmax(one.astype(np.float64), -1), log_softmax(other.astype(np.float64), -1)
    return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())


PLANS = {
    "paper": (load_plan("paper"), 0.60, 1e-4),
    "int8 blocks": (PrecisionPlan(name="x", default="int8", block_size=64), 0.45, 0.01),
    "int8 blocks, asymmetric": (PrecisionPlan(name="x", default="int8", block_size=32, symmetric=False), 0.48, 0.01),
    "int4 blocks": (PrecisionPlan(name="x", default="int4", block_size=32, groups={"embeddings": "int8"}), 0.40, 0.5),
    "int4 fitted": (PrecisionPlan(name="x", default="int4", block_size=64, symmetric=False, method="hqq"), 0.40, 0.5),
    "one layer": (PrecisionPlan(name="x", groups={"layers.3": "int4", "lm_heads": "float16"}), 0.95, 0.05),
    "many rows": (load_plan("server").model_copy(update={"cache": "float32"}), 0.45, 0.05),
    "counter-example": (load_plan("int8"), 0.35, 1.0),
}


@pytest.mark.parametrize("name", PLANS)
def test_quantized_graphs_are_smaller_and_run(name: str, exported: Path, tmp_path: Path) -> None:
    plan, share, most = PLANS[name]
    whole, generator = load_generator(exported, threads=1), applied(plan, exported, tmp_path)
    assert generator.manifest.size < share * whole.manifest.size
    codes = np.random.default_rng(0).integers(0, 512, (4, 20))
    expected = first_logits(whole, codes)
    assert 0 < divergence(expected, first_logits(generator, codes)) < most
    assert np.isfinite(generator.generate(GenerationRequest(PROMPT, seconds=1))).all()


def test_more_bits_reduce_the_error(exported: Path, tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 512, (4, 20))
    expected = first_logits(load_generator(exported, threads=1), codes)
    actual = []
    for number, precision in enumerate(("float16", "int8", "int4")):
        plan = PrecisionPlan(name="x", default=precision, block_size=32)  # type: ignore[arg-type]
        actual.append(divergence(expected, first_logits(applied(plan, exported, tmp_path / str(number)), codes)))
    assert 0 < actual[0] < actual[1] < actual[2]


def test_int8_cache(exported: Path, tmp_path: Path) -> None:
    """Every channel uses its whole range; the sinks that choose the attention's kernel weigh nothing."""
    codes = np.random.default_rng(0).integers(0, 512, (1, 4, 20))
    sequences = ForcedBatch([PROMPT], codes, null=False)
    whole = load_generator(exported, threads=1)
    expected, ranges = rollout_with_ranges(whole, sequences)
    generator = applied(PrecisionPlan(name="x", cache="int8"), exported, tmp_path, ranges)
    actual, ranges_8 = rollout_with_ranges(generator, sequences)
    assert 0 < divergence(expected, actual) < 2e-3
    largest = np.stack([np.stack(pair) for pair in ranges_8])
    assert largest.dtype == np.int8
    assert largest[0].min() == largest[0].max() == 127, "the first layer's depend on nothing that was rounded before"


def test_only_planned_nodes_change(exported: Path, tmp_path: Path) -> None:
    plan = PrecisionPlan(name="x", groups={"layers.3": "int8"}, block_size=64)
    apply_plan(plan, exported, tmp_path)
    kinds = {node.name: node.op_type for node in onnx.load(str(tmp_path / "decoder.onnx")).graph.node}
    changed = {name for name, kind in kinds.items() if kind == "MatMulNBits"}
    assert len(changed) == 6, "packed QKV, its output, query and output of cross-attention, two feed-forward products"
    assert all(name.startswith("layers.3.") for name in changed)
    for graph in ("text_encoder", "cross", "codec_decoder"):
        assert "MatMulNBits" not in {node.op_type for node in onnx.load(str(tmp_path / f"{graph}.onnx")).graph.node}


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_round_to_the_nearest_step(bits: int) -> None:
    table = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    table[2] = 0
    codes, scales = blocks_of(table, bits, 16)
    steps = np.repeat(scales, 16, axis=1)
    restored = (codes.astype(np.float64) - 2 ** (bits - 1)) * steps
    assert np.abs(restored - table).max() <= steps.max() / 2 + 1e-6
    assert codes.max() < 2**bits


def test_groups() -> None:
    assert group_of("decoder", "layers.11.fc1") == "layers.11"
    assert group_of("decoder", "lm_heads") == "lm_heads.0"
    assert group_of("decoder", "place") == "embeddings"
    assert group_of("text_encoder", "embedding") == "text_embedding"
    assert group_of("text_encoder", "encoder.block.0.layer.0.SelfAttention.q") == "text"
    assert group_of("codec_decoder", "vectors") == "codec"


def test_plan_file(tmp_path: Path) -> None:
    plan = PrecisionPlan(
        name="mine", default="int4", groups={"lm_heads": "int8", "layers.0": "float32"}, note="by hand"
    )
    save_plan(plan, tmp_path / "plan.yaml")
    assert load_plan(str(tmp_path / "plan.yaml")) == plan
    assert plan.of("layers.0") == "float32"
    assert plan.of("layers.1") == "int4"
    assert plan.of("codec") == "float32"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ngroups: {drums: int8}", r"groups\.drums: no such group"),
        ("name: x\ngroups: {codec: int4}", r"groups\.codec = int4: allowed are float32 and float16"),
        ("name: x\ndefault: int3", r"default: Input should be 'float32', 'float16', 'int8' or 'int4'"),
        ("name: x\nblock_size: 33", "block_size"),
        ("name: x\nmethod: hqq", "symmetric must be false"),
        ("name: x\nextra: 1", "extra"),
        ("[1", "cannot be read"),
    ],
)
def test_invalid_plans(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(PlanError, match=message) as caught:
        load_plan(str(tmp_path / "plan.yaml"))
    assert "\n" not in str(caught.value)


def test_missing_plans() -> None:
    with pytest.raises(PlanError, match="plan 'papr': allowed are float32, paper, int8, server, adaptive, or a YAML"):
        load_plan("papr")
    with pytest.raises(PlanError, match="No such file"):
        load_plan("./none.yaml")
