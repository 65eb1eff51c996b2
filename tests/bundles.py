"""A float32 bundle of a model, for tests of the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinymusician.models.tokenizer import MAX_TEXT_TOKENS, read_tokenizer
from tinymusician.quantize.export import architecture_of, export_fused
from tinymusician.runtime.bundle import describe_files
from tinymusician.runtime.bundle_manifest import BundleManifest, Role, SamplingDefaults

GRAPHS: tuple[Role, ...] = ("text_encoder", "cross", "decoder", "codec_decoder")


def write_bundle(model: Any, tokenizer: Path, folder: Path, continuation: bool = False, **sampling: Any) -> None:
    """Export `model` into `folder` and describe it."""
    export_fused(model, tokenizer, folder, continuation)
    has_limit = (tokenizer.parent / "tokenizer_config.json").is_file()
    limit = read_tokenizer("test", tokenizer.parent).model_max_length if has_limit else MAX_TEXT_TOKENS
    graphs = [*GRAPHS, "codec_encoder"] if continuation else GRAPHS
    roles: list[Any] = [(f"{role}.onnx", role, "float32") for role in graphs]
    manifest = BundleManifest(
        format=1,
        name="test",
        files=describe_files(folder, [*roles, ("tokenizer.json", "tokenizer", "")]),
        architecture=architecture_of(model, limit),
        sampling=SamplingDefaults(**sampling),
        providers=("CPUExecutionProvider",),
        minimum_memory=0,
        parity={},
        cost={},
        licence="none",
        lineage={},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
