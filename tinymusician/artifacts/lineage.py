"""The lineage of artifacts, from the manifests and runs of a store.

An artifact's manifest names the run that produced it and its sources: a teacher or a model, by name and by the SHA-256
of its weights. Following these names leads back to external weights; in reverse it leads to derived artifacts. The
attestation is an in-toto Statement v1 with SLSA's provenance predicate v1 (slsa.dev/spec/v1.0/provenance).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinymusician.artifacts.manifest import Manifest
from tinymusician.json_types import JsonObject

STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://github.com/tinymusician/tinymusician/jobs/v1"
_MATERIALS = ("model", "teacher", "started_from")


@dataclass(frozen=True)
class LineageEdge:
    """One step from a source, a name or a reference, to the artifact that was derived from it; `run` says by what."""

    source: str
    derived: str
    run: str


def lineage_edges(manifests: Sequence[Manifest]) -> list[LineageEdge]:
    """Every edge between the artifacts of a store, and from external weights."""
    return [
        LineageEdge(
            str(manifest.lineage[kind]), manifest.reference, f"{manifest.kind}, run {manifest.lineage.get('run', '?')}"
        )
        for manifest in manifests
        for kind in _MATERIALS
        if manifest.lineage.get(kind)
    ]


def backward(reference: str, edges: Sequence[LineageEdge]) -> list[LineageEdge]:
    """The edges that lead to an artifact, the nearest first."""
    return _walked(reference, edges, lambda edge: (edge.derived, edge.source))


def forward(reference: str, edges: Sequence[LineageEdge]) -> list[LineageEdge]:
    """The edges that lead away from an artifact, the nearest first."""
    return _walked(reference, edges, lambda edge: (edge.source, edge.derived))


def _walked(start: str, edges: Sequence[LineageEdge], ends: Any) -> list[LineageEdge]:
    waiting, seen, steps = [start], {start}, []
    while waiting:
        here = waiting.pop(0)
        for edge in edges:
            near, far = ends(edge)
            if near == here and edge not in steps:
                steps.append(edge)
                if far not in seen:
                    seen.add(far)
                    waiting.append(far)
    return steps


def provenance_facts(manifest: Manifest) -> dict[str, str]:
    """The provenance of an artifact as text: run, recipe, data, code and environment, as far as they are known."""
    lineage, git = manifest.lineage, manifest.lineage.get("git", {})
    changed = ", with changes that were not committed" if git.get("changed") == "yes" else ""
    data = [str(lineage["prompts"])] if lineage.get("prompts") else []
    data += [f"sha256:{str(lineage['prompts_sha256'])[:8]}"] if lineage.get("prompts_sha256") else []
    facts = {
        "run": str(lineage.get("run", "")),
        "recipe": str(manifest.recipe.get("name", "")),
        "data": " ".join(data),
        "code": f"{str(git['commit'])[:12]}{changed}" if git.get("commit") else "",
        "environment": ", ".join(f"{name} {version}" for name, version in lineage.get("versions", {}).items()),
    }
    return {name: said for name, said in facts.items() if said}


def attestation(manifest: Manifest) -> JsonObject:
    """The provenance of an artifact as an in-toto statement about its files."""
    lineage = manifest.lineage
    materials = [
        {"uri": str(lineage[kind]), "digest": {"sha256": str(lineage[f"{kind}_sha256"])}}
        for kind in _MATERIALS
        if lineage.get(kind) and lineage.get(f"{kind}_sha256")
    ]
    git = lineage.get("git", {})
    code = {"uri": "git+tinymusician", "digest": {"gitCommit": str(git.get("commit", ""))}, "annotations": git}
    return {
        "_type": STATEMENT,
        "subject": [{"name": file.path, "digest": {"sha256": file.sha256}} for file in manifest.files],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": manifest.recipe},
                "internalParameters": {"seeds": lineage.get("seeds", {}), "data": _data(lineage)},
                "resolvedDependencies": [*materials, code],
            },
            "runDetails": {
                "builder": {"id": BUILD_TYPE, "version": lineage.get("versions", {})},
                "metadata": {"invocationId": str(lineage.get("run", "")), "finishedOn": manifest.created.isoformat()},
            },
        },
    }


def _data(lineage: Mapping[str, object]) -> JsonObject:
    return {name: lineage[name] for name in ("prompts", "prompts_sha256", "clips") if lineage.get(name)}
