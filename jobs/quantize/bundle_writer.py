"""The end of a compression: a plan is chosen, held against PyTorch, and what it makes is published with its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tinymusician
from jobs.distill.finalize import BAND_LICENCE
from jobs.quantize.workspace import PlanTrial, QuantizationWorkspace
from tinymusician.artifacts.manifest import Manifest, publish
from tinymusician.errors import EngineError, PlanError
from tinymusician.html_report import html_picture, html_table, html_text, page
from tinymusician.models.shape import is_packaged
from tinymusician.quantize.adaptive import PlanEvaluator, PlanMetrics
from tinymusician.quantize.apply import apply_plan
from tinymusician.quantize.export import architecture_of
from tinymusician.quantize.package import PLAN_FILE, describe, write_manifest
from tinymusician.quantize.parity import ParityReport, ReferenceOutputs, check, measure, measure_fused
from tinymusician.quantize.precision import PrecisionPlan, coarsest, load_plan, save_plan
from tinymusician.quantize.providers import ProviderSupport, verdicts
from tinymusician.quantize.report import ParetoPoint, plot_front, plot_sensitivity
from tinymusician.quantize.sensitivity import Table, as_facts, choose
from tinymusician.recipe import Precision, QualityThreshold
from tinymusician.runtime.bundle import Bundle
from tinymusician.runtime.generator import MusicGenerator

BUDGET_RESERVE = 0.9
"""The share of the KL budget that a plan may use on the sequences it is chosen on; others differ a little."""
PROBE_PROMPT = "a fast and cheerful reel played on the fiddle"


@dataclass(frozen=True)
class PlanSelection:
    """The plan, its outcome on the sequences it was chosen on, and what was measured on the way to it."""

    plan: PrecisionPlan
    outcome: PlanMetrics
    table: Table | None
    points: list[ParetoPoint]


def publish_bundle(compression: QuantizationWorkspace, measurer: PlanEvaluator) -> tuple[Manifest, dict[str, Any]]:
    """Choose, check and store; returns the artifact and its figures.

    Raises:
        ParityError, PlanError: the graphs are too far from PyTorch; nothing is stored.
    """
    context, config = compression.context, compression.config
    chosen = choose_plan(compression, measurer)
    context.run.report_progress("parity", 0, 2)
    reference = ReferenceOutputs(
        compression.model, compression.tokenizer, compression.sequences("test", config.parity_sequences, None)
    )
    with tempfile.TemporaryDirectory(dir=compression.exported.parent) as scratch:
        folder = Path(scratch) / "bundle"
        maker = _OptimumExporter(compression) if config.format == "optimum" else _FusedExporter(compression, measurer)
        plain = maker.exact(reference)
        context.run.report_progress("parity", 1, 2)
        maker.make(chosen.plan, folder)
        parity = maker.parity(reference, folder)
        context.run.report_progress("report", 0, 1)

        def tell(cost: dict[str, Any]) -> dict[str, Any]:
            figures = _metrics(compression, chosen, parity, folder, cost)
            parities = {"float32": plain, chosen.plan.name: parity}
            text = _report(compression, chosen, parities, verdicts(folder), figures)
            sensitivity = as_facts(chosen.table) if chosen.table is not None else None
            context.run.write_report({"figures": figures, "sensitivity": sensitivity}, html=text)
            return figures

        tell({})  # what misses its gate has a report too
        check(plain, "float32 graphs", **config.thresholds.float32.model_dump())
        check(parity, f"plan {chosen.plan.name}", **_threshold(compression, chosen.plan).model_dump())
        save_plan(chosen.plan, folder / PLAN_FILE)
        figures = tell(maker.describe(chosen, folder, {"float32": plain.facts(), "bundle": parity.facts()}))
        manifest = publish(
            context.run.store,
            folder,
            name=f"{compression.recipe.name}-{maker.kind}",
            kind=maker.kind,
            recipe=context.record.recipe,
            lineage=lineage(compression),
            metrics=figures,
            licence=licence_of_model(compression),
        )
    context.run.report_progress("report", 1, 1)
    return manifest, figures


def choose_plan(compression: QuantizationWorkspace, measurer: PlanEvaluator) -> PlanSelection:
    """The recipe's plan, or the smallest one within its KL budget."""
    config, trials = compression.config, compression.trials(measurer)
    outcomes = compression.measured(measurer, trials)
    points = [ParetoPoint("float32", measurer.whole, 0.0)]
    points += [
        _pareto_point(t.plan.name, o) for t, o in zip(trials, outcomes, strict=True) if t.group is None and o.size
    ]
    if config.plan != "adaptive":
        plan = load_plan(config.plan)
        check_groups(plan, measurer)
        outcome = compression.measured(measurer, [PlanTrial(plan, chosen=True)])[0]
        others = [point for point in points if point.name != plan.name]
        return PlanSelection(plan, outcome, None, [*others, _pareto_point(plan.name, outcome)])
    alone = {t.group: o for t, o in zip(trials, outcomes, strict=True) if t.group is not None}
    table, how, tried = measurer.table(alone), compression.how(), {}

    def joint(groups: dict[str, Precision]) -> float:
        plan = how.model_copy(update={"name": "adaptive", "groups": groups})
        metrics = compression.measured(measurer, [PlanTrial(plan, chosen=True)])[0]
        tried[tuple(groups.items())] = metrics
        compression.context.run.report_progress("choice", len(tried), len(tried) + 1)
        print(f"choice: {metrics.size / 1e6:.1f} MB, worst codebook {max(metrics.by_codebook):.4g} nats", flush=True)
        return max(metrics.by_codebook)

    best = choose(table, BUDGET_RESERVE * config.kl_budget, joint)
    note = (
        f"chosen for {compression.config.model} under a KL budget of {config.kl_budget:g} nats a code, "
        f"{best.measured:.4g} measured in the worst codebook"
    )
    plan = how.model_copy(update={"name": "adaptive", "groups": best.groups, "note": note})
    outcome = tried[tuple(best.groups.items())]
    return PlanSelection(
        plan,
        outcome,
        table,
        [*points, *[_pareto_point("", o) for o in tried.values()], _pareto_point("adaptive", outcome)],
    )


def check_groups(plan: PrecisionPlan, measurer: PlanEvaluator) -> None:
    """Every group that a plan names must be in the model.

    Raises:
        PlanError: one is not.
    """
    for group in plan.groups:
        if group not in measurer.groups and group != "lm_heads":
            raise PlanError(f"plan {plan.name}: groups.{group}: this model has {', '.join(measurer.groups)}")


class _FusedExporter:
    """Our own graphs, which the engine plays."""

    kind = "bundle"

    def __init__(self, compression: QuantizationWorkspace, measurer: PlanEvaluator) -> None:
        self._compression, self._measurer = compression, measurer

    def exact(self, reference: ReferenceOutputs) -> ParityReport:
        return measure_fused(reference, self._compression.player(), self._compression.exported)

    def make(self, plan: PrecisionPlan, folder: Path) -> None:
        apply_plan(plan, self._compression.exported, folder, self._measurer.ranges)

    def parity(self, reference: ReferenceOutputs, folder: Path) -> ParityReport:
        player = MusicGenerator(Bundle(folder, self._compression.manifest), self._compression.context.threads)
        return measure_fused(reference, player, folder)

    def describe(self, chosen: PlanSelection, folder: Path, parity: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest, play once to see what that costs, and write it again with the costs."""
        compression = self._compression
        facts: dict[str, Any] = {
            "licence": licence_of_model(compression),
            "lineage": lineage(compression),
            "parity": parity,
        }
        dtypes = {
            graph: "+".join(sorted({chosen.plan.of(group) for group in groups}))
            if not chosen.plan.uniform_int8
            else "int8"
            for graph, groups in self._measurer.in_graph.items()
        }

        def write(cost: dict[str, Any], memory: int) -> None:
            manifest = describe(
                folder,
                compression.recipe.name,
                architecture_of(compression.model),
                compression.defaults(),
                dtypes,
                chosen.plan.providers,
                cost=cost,
                minimum_memory=memory,
                **facts,
            )
            write_manifest(manifest, folder)

        write({}, 0)
        cost = measure_playback(folder)
        write(cost, cost["peak_memory_bytes"])
        return cost


class _OptimumExporter:
    """Optimum's graphs, for clients of that layout."""

    kind = "optimum"

    def __init__(self, compression: QuantizationWorkspace) -> None:
        from tinymusician.models.musicgen import model_location

        self._compression = compression
        self._source = compression.exported.parent / f"{compression.digest}-optimum"
        if not self._source.exists():
            from tinymusician.quantize.optimum import export_optimum

            with tempfile.TemporaryDirectory(dir=self._source.parent) as scratch:
                export_optimum(Path(model_location(compression.name)), Path(scratch) / "graphs")
                (Path(scratch) / "graphs").rename(self._source)

    def exact(self, reference: ReferenceOutputs) -> ParityReport:
        with tempfile.TemporaryDirectory(dir=self._source.parent) as scratch:
            self.make(load_plan("float32"), Path(scratch))
            return self.parity(reference, Path(scratch))

    def make(self, plan: PrecisionPlan, folder: Path) -> None:
        from tinymusician.quantize.optimum import apply_to_optimum

        apply_to_optimum(plan, self._source, folder)

    def parity(self, reference: ReferenceOutputs, folder: Path) -> ParityReport:
        from tinymusician.quantize.optimum import optimum_logits, optimum_wave

        sequences = reference.sequences
        logits = optimum_logits(folder, self._compression.tokenizer, sequences)
        return measure(reference, logits, optimum_wave(folder, sequences))

    def describe(self, chosen: PlanSelection, folder: Path, parity: dict[str, Any]) -> dict[str, Any]:
        """This layout has no manifest of its own; what is known stands in the artifact's."""
        return {}


def measure_playback(folder: Path) -> dict[str, Any]:
    """What `tmctl generate` says of playing from the bundle, in a process of its own.

    Raises:
        EngineError: it does not play.
    """
    # This very code, wherever it came to with the job.
    roots = {str(Path(__file__).parents[2]), str(Path(str(tinymusician.__file__)).parents[1])}
    python_path = os.environ.get("PYTHONPATH")
    paths = {"PYTHONPATH": os.pathsep.join([*sorted(roots), *([python_path] if python_path else [])])}
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "jobs.cli.main", "generate", PROBE_PROMPT, "--model", str(folder), "--json"]
        command += ["-o", f"{scratch}/probe.wav"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | paths)
    if ended.returncode != 0:
        raise EngineError(f"bundle: does not play ({' '.join(ended.stderr.split())[-300:]})")
    said: dict[str, Any] = json.loads(ended.stdout)
    return {
        name: said[name]
        for name in ("seconds", "load_seconds", "generate_seconds", "real_time_factor", "peak_memory_bytes")
    }


def lineage(compression: QuantizationWorkspace) -> dict[str, Any]:
    """Where a bundle comes from."""
    record = compression.context.record
    return {
        "run": record.id,
        "model": compression.config.model,
        "model_sha256": compression.digest,
        "versions": record.versions,
        "git": record.git,
        "seeds": record.seeds,
    }


def licence_of_model(compression: QuantizationWorkspace) -> str:
    """The model's own licence: an artifact says it, packaged weights are the project's, others MusicGen's."""
    if compression.artifact is not None:
        return compression.artifact.licence
    if compression.config.model is not None and is_packaged(compression.config.model):
        return BAND_LICENCE
    return "CC-BY-NC-4.0 (derived from MusicGen's weights)"


def _threshold(compression: QuantizationWorkspace, plan: PrecisionPlan) -> QualityThreshold:
    """The gate of the plan's coarsest precision; where a budget was set, that is the KL it must keep."""
    config = compression.config
    gate: QualityThreshold = getattr(config.thresholds, coarsest(plan))
    return gate.model_copy(update={"kl": config.kl_budget}) if config.plan == "adaptive" else gate


def _metrics(
    compression: QuantizationWorkspace, chosen: PlanSelection, parity: ParityReport, folder: Path, cost: dict[str, Any]
) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    whole = 4 * sum(parameter.numel() for parameter in compression.model.state_dict().values())
    return {
        "plan": chosen.plan.name,
        "size": size,
        "float32_checkpoint_size": whole,
        "share_of_float32": round(size / whole, 4),
        "kl_calibration": max(chosen.outcome.by_codebook),
        "kl_per_codebook": parity.kl,
        "agreement": min(parity.agreement),
        "codec_snr_db": parity.codec_snr,
        **cost,
    }


def _report(
    compression: QuantizationWorkspace,
    chosen: PlanSelection,
    parities: dict[str, ParityReport],
    support: list[ProviderSupport],
    figures: dict[str, Any],
) -> str:
    budget = compression.config.kl_budget if chosen.table is not None else None
    parts = [("Figures", html_table(("figure", "value"), list(figures.items())))]
    parts.append(("Size against KL", html_picture(plot_front(chosen.table, chosen.points, budget), "size against KL")))
    rows = [(point.name, point.size, point.kl) for point in chosen.points if point.name]
    parts.append(
        ("Plans", html_table(("plan", "bytes of the fused graphs", "KL of the worst codebook (nats a code)"), rows))
    )
    if chosen.table is not None:
        parts.append(("Sensitivity", html_picture(plot_sensitivity(chosen.table), "KL of each group alone")))
    for name, parity in parities.items():
        parts.append((f"Parity with PyTorch: {name}", html_table(("what", "value"), _parity_rows(parity))))
    lines = [(one.graph, one.provider, ", ".join(one.lacks) or "nothing", one.said) for one in support]
    parts.append(("Where it runs", html_table(("graph", "provider", "lacks", "verdict"), lines)))
    parts.append(("The plan", html_text(json.dumps(chosen.plan.model_dump(mode="json"), indent=2))))
    return page(f"{compression.recipe.name}: {compression.config.model} compressed", parts)


def _parity_rows(parity: ParityReport) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [(f"KL, codebook {k + 1} (nats a code)", kl) for k, kl in enumerate(parity.kl)]
    rows += [(f"same likeliest code, codebook {k + 1}", share) for k, share in enumerate(parity.agreement)]
    rows += [(f"KL, {part}", kl) for part, kl in parity.by_part.items()]
    rows.append(("largest difference of two logits", parity.worst_logit))
    rows.append(("at step", parity.worst_step))
    rows.append(("first layer that is off by a hundredth", parity.first_layer if parity.first_layer >= 0 else "none"))
    rows.append(("at step", parity.first_step if parity.first_step >= 0 else "none"))
    rows += [(f"largest error of layer {layer}", error) for layer, error in enumerate(parity.layer_errors)]
    rows.append(("codec's signal to noise (dB)", parity.codec_snr))
    return rows


def _pareto_point(name: str, outcome: PlanMetrics) -> ParetoPoint:
    return ParetoPoint(name, outcome.size, max(outcome.by_codebook))
