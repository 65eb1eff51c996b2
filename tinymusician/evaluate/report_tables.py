"""The tables of an evaluation's report: column names, and one row of text per model."""

from __future__ import annotations

from collections.abc import Sequence

from tinymusician.evaluate.bootstrap import Interval
from tinymusician.evaluate.degenerate import FAULTS
from tinymusician.evaluate.results import (
    REAL,
    RECONSTRUCTED,
    ClapScore,
    ClipSetResult,
    DistributionMetrics,
    EvaluationResult,
    FolderResult,
    ModelResult,
)

Table = tuple[Sequence[str], Sequence[Sequence[object]]]
_EMPTY = "—"


def summary_table(result: EvaluationResult) -> Table:
    """The main metrics of every model."""
    columns = ("model", "MB", "FAD", "FAD∞", "KAD", "CLAP", "CLAP, shuffled", "KL to teacher", "degenerate", "RTF")
    rows: list[Sequence[object]] = []
    if result.real is not None:
        rows.append((REAL, *[_EMPTY] * 4, *_clap_cells(result.real), *[_EMPTY] * 3))
    if result.reconstructed is not None:
        rows.append((RECONSTRUCTED, _EMPTY, *_distribution_cells(result.reconstructed), *[_EMPTY] * 3))
    for model in result.models:
        cells = _distribution_cells(model.distribution)
        kl = format_interval(model.agreement.forward if model.agreement else None)
        degenerate = _degenerate(model)
        factor = f"{model.cost.real_time_factor:.2f}" if model.cost else _EMPTY
        rows.append((model.label, f"{model.size / 1e6:.1f}", *cells, kl, degenerate, factor))
    for folder in result.folders:
        cells = _distribution_cells(folder.distribution)
        rows.append((folder.label, _EMPTY, *cells, _EMPTY, _degenerate(folder), _EMPTY))
    return columns, rows


def _degenerate(clips: ClipSetResult) -> str:
    return f"{clips.degenerate.clips} of {clips.distribution.clips}"


def difference_table(sets: Sequence[ClipSetResult]) -> Table:
    """The difference of each model or folder from the first one: CLAP paired by clip, distances by value."""
    first, *others = sets
    base = first.distribution
    rows = []
    for clips in others:
        one = clips.distribution
        pairs = ((one.fad, base.fad), (one.fad_infinity, base.fad_infinity), (one.kad, base.kad))
        clap = format_interval(clips.clap_difference if isinstance(clips, ModelResult) else None, signed=True)
        rows.append((clips.label, clap, *(_difference(*pair) for pair in pairs)))
    return (f"minus {first.label}", "CLAP", "FAD", "FAD∞", "KAD"), rows


def agreement_table(models: Sequence[ModelResult]) -> Table:
    """Agreement with the teacher: KL in nats per code, and shares."""
    columns = ("model", "KL(teacher‖model)", "KL(model‖teacher)", "top-1", "KL without guidance")
    rows = []
    for model in models:
        if (one := model.agreement) is not None:
            values = (one.forward, one.reverse, one.top_1, one.with_text, one.teacher_nll, one.code_entropy)
            rows.append((model.label, *(format_interval(value) for value in values)))
    return (*columns, "teacher's NLL of its samples", "entropy of its codes"), rows


def label_table(result: EvaluationResult) -> Table:
    """The label divergence of each question that the classifier answers."""
    columns = ("model", "question", "KL(real‖generated)", "KL(generated‖real)", "same top label")
    sets = [(model.label, model.distribution) for model in result.models]
    if result.reconstructed is not None:
        sets.insert(0, (RECONSTRUCTED, result.reconstructed))
    rows = [
        (label, question, *(format_interval(value) for value in (one.forward, one.reverse, one.agreement)))
        for label, metrics in sets
        for question, one in metrics.labels.items()
    ]
    return columns, rows


def adherence_table(result: EvaluationResult) -> Table:
    """By set and attribute: the probability that clips keep what their prompts claim, and how often it is the top."""
    sets = [(REAL, result.real_adherence)]
    if result.reconstructed is not None:
        sets.append((RECONSTRUCTED, result.reconstructed.adherence))
    sets += [(clips.label, clips.distribution.adherence) for clips in result.sets]
    rows = [
        (label, attribute, score.clips, format_interval(score.probability), format_interval(score.top))
        for label, scores in sets
        for attribute, score in scores.items()
    ]
    return ("clips", "attribute", "prompts that name it", "probability of what they name", "most probable"), rows


def cost_table(models: Sequence[ModelResult]) -> Table:
    """The cost of generation, as in the paper's table 4."""
    columns = ("model", "s per clip", "RTF (lowest to highest)", "processors", "peak memory MB", "GPU memory MB")
    rows = []
    for model in models:
        if (cost := model.cost) is not None:
            row = (
                model.label,
                f"{cost.seconds:.2f} of {cost.length:g}",
                f"{cost.real_time_factor:.3f} ({cost.lowest:.3f} to {cost.highest:.3f})",
                f"{cost.cpu:.2f}",
                f"{cost.memory / 1e6:.0f}",
                _number(cost.gpu_memory, 1e6),
                _number(cost.flops, 1e9),
                _number(cost.joules, 1),
                ", ".join(f"{name} {size / 1e6:.1f}" for name, size in cost.sizes.items()),
            )
            rows.append(row)
    return (*columns, "GFLOP per second of audio", "J per second of audio", "components MB"), rows


def folder_table(folders: Sequence[FolderResult]) -> Table:
    """The files of each folder, and how they were read."""
    rows = [
        (
            folder.label,
            folder.files["clips there"],
            folder.distribution.clips,
            ", ".join(f"{name}: {files}" for name, files in folder.files.items() if "left out" in name) or _EMPTY,
            ", ".join(f"{change}: {clips}" for change, clips in folder.audio.conversions.items()) or _EMPTY,
            "; ".join(folder.audio.unreadable) or _EMPTY,
        )
        for folder in folders
    ]
    return ("folder", "audio files", "usable", "other files", "conversions", "unreadable"), rows


def degenerate_table(models: Sequence[ClipSetResult]) -> Table:
    """The number of clips with each fault."""
    rows = []
    for model in models:
        counts = [model.degenerate.by_fault[fault] for fault in FAULTS]
        quiet = f"{model.degenerate.quiet:.1%}"
        rows.append((model.label, model.distribution.clips, model.degenerate.clips, *counts, quiet))
    return ("model", "clips", "any fault", *FAULTS, "quiet frames"), rows


def worst_table(models: Sequence[ClipSetResult]) -> Table:
    """The clips that are furthest from the reference."""
    rows = [(model.label, one.clip, one.fad, one.prompt) for model in models for one in model.worst]
    return ("model", "clip", "FAD of the clip", "prompt or file"), rows


def format_interval(value: Interval | None, signed: bool = False) -> str:
    """A value with its interval, or the few values it is the mean of; three significant digits or decimals."""
    if value is None:
        return _EMPTY
    form = "+.3g" if signed else ".3g" if abs(value.value) >= 1 else ".3f"
    if value.low is None:
        values = f" ({', '.join(f'{one:{form}}' for one in value.values)})" if len(value.values) > 1 else ""
        return f"{value.value:{form}}{values}"
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


def _distribution_cells(metrics: DistributionMetrics) -> tuple[str, ...]:
    distances = (metrics.fad, metrics.fad_infinity, metrics.kad)
    return *(format_interval(value) for value in distances), *_clap_cells(metrics.clap)


def _clap_cells(clap: ClapScore | None) -> tuple[str, str]:
    if clap is None:
        return _EMPTY, _EMPTY
    shuffled = _EMPTY if clap.shuffled is None else f"{clap.shuffled:.3f} (p {clap.p_shuffled:.1g})"
    return format_interval(clap.score), shuffled


def _difference(value: Interval | None, base: Interval | None) -> str:
    return _EMPTY if value is None or base is None else f"{value.value - base.value:+.3g}"


def _number(value: float | None, unit: float) -> str:
    return _EMPTY if value is None else f"{value / unit:.1f}"
