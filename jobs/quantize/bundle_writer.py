"""Writes a bundle: chooses its plan, compares its graphs with PyTorch, and publishes it with a report."""

from __future__ import annotations

import tempfile
from pathlib import Path

from jobs.quantize.exporters import Exporter, FusedExporter, OptimumExporter
from jobs.quantize.plan_selection import PlanSelection, choose_plan
from jobs.quantize.workspace import QuantizationWorkspace
from tinymusician.artifacts.manifest import Manifest, publish
from tinymusician.quantize.adaptive import PlanEvaluator
from tinymusician.quantize.package import PLAN_FILE
from tinymusician.quantize.parity import ReferenceOutputs, check
from tinymusician.quantize.precision import PrecisionPlan, coarsest, load_plan, save_plan
from tinymusician.quantize.providers import provider_support
from tinymusician.quantize.report import html_report
from tinymusician.quantize.results import ParityReport, QuantizationMetrics, QuantizationResult
from tinymusician.recipe import QualityThreshold
from tinymusician.runtime.playback_cost import PlaybackCost

_FLOAT32 = load_plan("float32").name


def publish_bundle(workspace: QuantizationWorkspace, evaluator: PlanEvaluator) -> tuple[Manifest, QuantizationResult]:
    """Choose, compare and publish; a bundle that is refused has a report too.

    Raises:
        ParityError, PlanError: the graphs are too far from PyTorch, or no plan fits; nothing is published.
    """
    run, config = workspace.context.run, workspace.config
    selection = choose_plan(workspace, evaluator)
    run.report_progress("parity", 0, 2)
    sequences = workspace.sequences("test", config.parity_sequences, None)
    reference = ReferenceOutputs(workspace.model, workspace.tokenizer, sequences)
    with tempfile.TemporaryDirectory(dir=workspace.exported.parent) as scratch:
        folder = Path(scratch) / "bundle"
        exporter = _exporter(workspace, evaluator)
        float32 = exporter.float32_parity(reference)
        run.report_progress("parity", 1, 2)
        exporter.write(selection.plan, folder)
        parity = exporter.parity(reference, folder)
        run.report_progress("report", 0, 1)
        parities = {_FLOAT32: float32, selection.plan.name: parity}
        _write_report(workspace, _result(workspace, selection, parities, folder, None))
        check(float32, "float32 graphs", **config.thresholds.float32.model_dump())
        check(parity, f"plan {selection.plan.name}", **_threshold(workspace, selection.plan).model_dump())
        save_plan(selection.plan, folder / PLAN_FILE)
        cost = exporter.describe(selection, folder, {_FLOAT32: float32, "bundle": parity})
        result = _result(workspace, selection, parities, folder, cost)
        _write_report(workspace, result)
        manifest = publish(
            run.store,
            folder,
            name=f"{workspace.recipe.name}-{exporter.kind}",
            kind=exporter.kind,
            recipe=workspace.context.record.recipe,
            lineage=workspace.lineage(),
            metrics=result.metrics.flat(),
            licence=workspace.licence,
        )
    run.report_progress("report", 1, 1)
    return manifest, result


def _exporter(workspace: QuantizationWorkspace, evaluator: PlanEvaluator) -> Exporter:
    if workspace.config.format == "optimum":
        return OptimumExporter(workspace)
    return FusedExporter(workspace, evaluator)


def _threshold(workspace: QuantizationWorkspace, plan: PrecisionPlan) -> QualityThreshold:
    """The threshold of the plan's coarsest precision; its KL is the budget of an adaptive plan."""
    config = workspace.config
    threshold: QualityThreshold = getattr(config.thresholds, coarsest(plan))
    return threshold.model_copy(update={"kl": config.kl_budget}) if config.plan == "adaptive" else threshold


def _result(
    workspace: QuantizationWorkspace,
    selection: PlanSelection,
    parities: dict[str, ParityReport],
    folder: Path,
    cost: PlaybackCost | None,
) -> QuantizationResult:
    parity = parities[selection.plan.name]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    float32_size = 4 * sum(parameter.numel() for parameter in workspace.model.state_dict().values())
    metrics = QuantizationMetrics(
        plan=selection.plan.name,
        size=size,
        float32_checkpoint_size=float32_size,
        share_of_float32=round(size / float32_size, 4),
        kl_calibration=max(selection.metrics.by_codebook),
        kl_per_codebook=tuple(parity.kl),
        agreement=min(parity.agreement),
        codec_snr_db=parity.codec_snr,
        playback=cost,
    )
    table = selection.table
    return QuantizationResult(
        recipe=workspace.recipe.name,
        model=str(workspace.config.model),
        plan=selection.plan,
        metrics=metrics,
        kl_budget=None if table is None else workspace.config.kl_budget,
        points=tuple(selection.points),
        sensitivity=None if table is None else {group: dict(options) for group, options in table.items()},
        parity=parities,
        providers=tuple(provider_support(folder)),
    )


def _write_report(workspace: QuantizationWorkspace, result: QuantizationResult) -> None:
    workspace.context.run.write_report(result)
    workspace.context.run.write_rendered_report(html_report(result))
