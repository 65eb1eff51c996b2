"""Describes a folder of graphs as a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinymusician.quantize.apply import GRAPHS
from tinymusician.runtime.bundle import FORMAT, MANIFEST, describe_files
from tinymusician.runtime.bundle_manifest import Architecture, BundleManifest, Role, SamplingDefaults

PLAN_FILE = "plan.yaml"


def describe(
    folder: Path,
    name: str,
    architecture: Architecture,
    sampling: SamplingDefaults,
    dtypes: Mapping[str, str] | None = None,
    providers: tuple[str, ...] = ("CPUExecutionProvider",),
    **facts: Any,
) -> BundleManifest:
    """The manifest of the graphs in `folder`.

    `dtypes` are the types of the weights by graph; `facts` are the manifest's other fields.
    """
    graph_dtypes = dtypes or {}
    files: list[tuple[str, Role, str]] = []
    for role in GRAPHS:
        if (folder / f"{role}.onnx").exists():
            files.append((f"{role}.onnx", role, graph_dtypes.get(role, "float32")))
        if (folder / f"{role}.onnx.data").exists():
            files.append((f"{role}.onnx.data", "weights", graph_dtypes.get(role, "float32")))
    files.append(("tokenizer.json", "tokenizer", ""))
    if (folder / PLAN_FILE).exists():
        files.append((PLAN_FILE, "plan", ""))
    described = describe_files(folder, files)
    return BundleManifest(
        format=FORMAT,
        name=name,
        files=described,
        architecture=architecture,
        sampling=sampling,
        providers=providers,
        **facts,
    )


def write_manifest(manifest: BundleManifest, folder: Path) -> None:
    """Write the manifest where `open_bundle` looks for it."""
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2), "utf-8")
