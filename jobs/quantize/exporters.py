"""The two formats of a bundle's graphs: our fused graphs for the engine, and Optimum's graphs for other clients."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Protocol

from jobs.quantize.plan_selection import PlanSelection
from jobs.quantize.workspace import QuantizationWorkspace
from tinymusician.json_types import JsonObject
from tinymusician.models.musicgen import model_location
from tinymusician.quantize.adaptive import PlanEvaluator
from tinymusician.quantize.apply import apply_plan
from tinymusician.quantize.package import describe, write_manifest
from tinymusician.quantize.parity import ReferenceOutputs, measure, measure_fused
from tinymusician.quantize.precision import PrecisionPlan, load_plan
from tinymusician.quantize.results import ParityReport, cost_facts
from tinymusician.runtime.bundle import Bundle
from tinymusician.runtime.generator import MusicGenerator
from tinymusician.runtime.measure_playback import measure_playback
from tinymusician.runtime.playback_cost import PlaybackCost

PROBE_PROMPT = "a fast and cheerful reel played on the fiddle"


class Exporter(Protocol):
    """Writes quantized graphs, and compares graphs with PyTorch. `kind` is the kind of the artifact."""

    kind: str

    def float32_parity(self, reference: ReferenceOutputs) -> ParityReport:
        """The parity of the float32 graphs."""

    def write(self, plan: PrecisionPlan, folder: Path) -> None:
        """Write the graphs of a plan into an empty folder."""

    def parity(self, reference: ReferenceOutputs, folder: Path) -> ParityReport:
        """The parity of the graphs in a folder."""

    def describe(self, selection: PlanSelection, folder: Path, parity: dict[str, ParityReport]) -> PlaybackCost | None:
        """Write the format's manifest, if it has one; returns the cost of playback."""


class FusedExporter:
    """Our own graphs, which the engine plays."""

    kind = "bundle"

    def __init__(self, workspace: QuantizationWorkspace, evaluator: PlanEvaluator) -> None:
        self._workspace, self._evaluator = workspace, evaluator

    def float32_parity(self, reference: ReferenceOutputs) -> ParityReport:
        """The parity of the float32 graphs."""
        return measure_fused(reference, self._workspace.float32_generator(), self._workspace.exported)

    def write(self, plan: PrecisionPlan, folder: Path) -> None:
        """Write the graphs of a plan into an empty folder."""
        apply_plan(plan, self._workspace.exported, folder, self._evaluator.ranges)

    def parity(self, reference: ReferenceOutputs, folder: Path) -> ParityReport:
        """The parity of the graphs in a folder."""
        generator = MusicGenerator(Bundle(folder, self._workspace.manifest), self._workspace.context.threads)
        return measure_fused(reference, generator, folder)

    def describe(self, selection: PlanSelection, folder: Path, parity: dict[str, ParityReport]) -> PlaybackCost:
        """Write the manifest, measure the playback of the bundle, and write the manifest again with its cost."""
        workspace, plan = self._workspace, selection.plan
        dtypes = {
            graph: "int8" if plan.uniform_int8 else "+".join(sorted({plan.of(group) for group in groups}))
            for graph, groups in self._evaluator.in_graph.items()
        }
        facts: JsonObject = {"licence": workspace.licence, "lineage": workspace.lineage()}
        facts["parity"] = {name: report.facts() for name, report in parity.items()}

        def write(cost: PlaybackCost | None) -> None:
            manifest = describe(
                folder,
                workspace.recipe.name,
                workspace.architecture,
                workspace.defaults(),
                dtypes,
                plan.providers,
                cost=cost_facts(cost),
                minimum_memory=0 if cost is None else cost.peak_memory_bytes,
                **facts,
            )
            write_manifest(manifest, folder)

        write(None)
        cost = measure_playback(folder, PROBE_PROMPT)
        write(cost)
        return cost


class OptimumExporter:
    """Optimum's graphs, for clients of that format."""

    kind = "optimum"

    def __init__(self, workspace: QuantizationWorkspace) -> None:
        self._workspace = workspace
        self._source = workspace.exported.parent / f"{workspace.digest}-optimum"
        if not self._source.exists():
            from tinymusician.quantize.optimum import export_optimum

            with tempfile.TemporaryDirectory(dir=self._source.parent) as scratch:
                export_optimum(model_location(workspace.name), Path(scratch) / "graphs")
                (Path(scratch) / "graphs").rename(self._source)

    def float32_parity(self, reference: ReferenceOutputs) -> ParityReport:
        """The parity of the float32 graphs."""
        with tempfile.TemporaryDirectory(dir=self._source.parent) as scratch:
            self.write(load_plan("float32"), Path(scratch))
            return self.parity(reference, Path(scratch))

    def write(self, plan: PrecisionPlan, folder: Path) -> None:
        """Write the graphs of a plan into an empty folder."""
        from tinymusician.quantize.optimum import apply_to_optimum

        apply_to_optimum(plan, self._source, folder)

    def parity(self, reference: ReferenceOutputs, folder: Path) -> ParityReport:
        """The parity of the graphs in a folder."""
        from tinymusician.quantize.optimum import optimum_logits, optimum_wave

        sequences = reference.sequences
        logits = optimum_logits(folder, self._workspace.tokenizer, sequences)
        return measure(reference, logits, optimum_wave(folder, sequences))

    def describe(self, selection: PlanSelection, folder: Path, parity: dict[str, ParityReport]) -> None:
        """This format has no manifest of its own; the artifact's manifest has its facts."""
