"""Writes a model that answers questions as a bundle: graphs in the precisions of a plan, tokenizer, manifest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch

from tinymusician.errors import ModelError
from tinymusician.json_types import JsonObject
from tinymusician.models.audio_encoder import PATCH
from tinymusician.models.audio_lm import AudioLM
from tinymusician.models.spectral_front_end import HOP, RATE
from tinymusician.quantize.apply import quantize_model
from tinymusician.quantize.audio_lm import audio_encoder_graph, lm_graph
from tinymusician.quantize.graph import save
from tinymusician.quantize.package import PLAN_FILE
from tinymusician.quantize.precision import FRONT_END, PrecisionPlan, save_plan
from tinymusician.runtime.audio_lm_bundle import AttributeQuestion, AudioLMArchitecture, AudioLMManifest
from tinymusician.runtime.bundle import FORMAT, MANIFEST, describe_files
from tinymusician.runtime.bundle_manifest import Role

_FILES: tuple[tuple[str, Role], ...] = (
    ("audio_encoder.onnx", "audio_encoder"),
    ("lm.onnx", "lm"),
    ("tokenizer.json", "tokenizer"),
    (PLAN_FILE, "plan"),
)
_FRONT_END_NODES = re.compile(r"^(spectrum|pitch|mel)(\.|$)")


class BundleFacts(NamedTuple):
    """What a manifest says besides files and architecture."""

    name: str
    window_seconds: float
    questions: Sequence[AttributeQuestion]
    parity: JsonObject
    cost: JsonObject
    licence: str
    lineage: JsonObject
    minimum_memory: int = 0
    levels: tuple[float, float] | None = None


def write_graphs(model: AudioLM, plan: PrecisionPlan, tokenizer_json: str, folder: Path) -> None:
    """Write the graphs, quantized by a plan, with plan and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
    graphs = {
        "audio_encoder": audio_encoder_graph(model.shape, weights),
        "lm": lm_graph(model.shape.lm, weights),
    }
    for name, graph in graphs.items():
        save(quantize_model(plan, graph, group_of), folder / f"{name}.onnx")
    (folder / "tokenizer.json").write_text(tokenizer_json, "utf-8")
    save_plan(plan, folder / PLAN_FILE)


def group_of(node: str) -> str:
    """The plan's group of a node of either graph."""
    if layer := re.match(r"layers\.\d+", node):
        return str(layer[0])
    if node in ("embed_tokens", "logits"):
        return "embeddings"
    if _FRONT_END_NODES.match(node):
        return FRONT_END
    return "projector" if node.startswith("projector.") else "encoder"


def write_manifest(model: AudioLM, plan: PrecisionPlan, folder: Path, facts: BundleFacts) -> AudioLMManifest:
    """Describe the files of a folder, and write its manifest.

    Raises:
        ModelError: a window is longer than what the encoder's graph reads at once.
    """
    columns, block = -(-round(facts.window_seconds * RATE) // (HOP * PATCH)), model.shape.audio_encoder.block_columns
    if columns > block:
        raise ModelError(f"bundle {facts.name}: a window has {columns} columns; the encoder's graph reads {block}")
    lm, dtype = model.shape.lm, " ".join(sorted({plan.default, *plan.groups.values()}))
    manifest = AudioLMManifest(
        format=FORMAT,
        name=facts.name,
        files=describe_files(folder, [(path, role, dtype if path.endswith(".onnx") else "") for path, role in _FILES]),
        architecture=AudioLMArchitecture(
            sampling_rate=RATE,
            window_seconds=facts.window_seconds,
            vocabulary=lm.vocabulary,
            width=lm.width,
            layers=lm.layers,
            key_value_heads=lm.key_value_heads,
            head_width=lm.width // lm.heads,
            end=lm.end,
            levels=facts.levels,
        ),
        questions=tuple(facts.questions),
        providers=("CPUExecutionProvider",),
        minimum_memory=facts.minimum_memory,
        parity=facts.parity,
        cost=facts.cost,
        licence=facts.licence,
        lineage=facts.lineage,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2), "utf-8")
    return manifest


class AudioDifference(NamedTuple):
    """The largest differences from PyTorch: of normalized log spectra, and of the language model's inputs.

    Spectra differ most where a band is hardly above the floor: its power is what is left of large terms, which both
    sum in float32.
    """

    spectra: float
    embeddings: float


def audio_difference(model: AudioLM, waves_BN: np.ndarray) -> AudioDifference:
    """The differences of the audio encoder's float32 graph from PyTorch, over some clips."""
    import onnxruntime

    weights = {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
    graph = audio_encoder_graph(model.shape, weights)
    graph.graph.output.append(onnx.helper.make_tensor_value_info("spectra", onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    differences = []
    for wave_1N in waves_BN[:, None]:
        audio = torch.from_numpy(wave_1N)
        with torch.no_grad():
            expected = model.audio_encoder.front_end(audio), model.projector(model.audio_encoder(audio))
        results = session.run(["spectra", "embeddings"], {"audio": wave_1N})
        pairs = zip(results, expected, strict=True)
        differences.append([float(np.abs(result - value.numpy()).max()) for result, value in pairs])
    return AudioDifference(*np.max(differences, axis=0).tolist())
