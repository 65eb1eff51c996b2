"""The manifests as kustomize builds them, and the schemas of KubeRay's resources."""

from __future__ import annotations

import functools
import json
import lzma
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MANIFESTS = ROOT / "infra/kubernetes"
SCHEMAS = ROOT / "tests/kuberay_schemas"
OVERLAYS = ("cpu", "gpu", "gpu-run")


@functools.cache
def build(folder: str) -> tuple[dict[str, Any], ...]:
    """The resources of a folder with a kustomization, as an API server gets them."""
    kustomize = shutil.which("kustomize")
    if kustomize is None:
        pytest.skip("no kustomize here: `make tools`")
    command = [kustomize, "build", str(MANIFESTS / folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return tuple(yaml.load_all(ended.stdout, yaml.CSafeLoader))


def of_kind(folder: str, kind: str) -> list[dict[str, Any]]:
    """Those of a kind."""
    return [one for one in build(folder) if one["kind"] == kind]


@functools.cache
def schema(kind: str) -> dict[str, Any]:
    """The JSON schema of a resource of KubeRay, which allows no field that is not in it."""
    file = SCHEMAS / f"{kind.lower()}.json.xz"
    return dict(_closed(json.loads(lzma.decompress(file.read_bytes()))))


def _closed(node: Any) -> Any:
    """A structural schema with its unwritten rule: an API server drops fields that the schema does not name."""
    if isinstance(node, list):
        return [_closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    result = {name: _closed(value) for name, value in node.items()}
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if isinstance(node.get("properties"), dict) and not node.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
    return result
