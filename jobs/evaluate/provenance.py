"""The origin of evaluated models, as far as the store has it: students' training curves, bundles' sensitivities."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.worker.model_refs import parse_label
from tinymusician.artifacts.manifest import Manifest, find
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import Store
from tinymusician.errors import DigestMismatchError, NotFoundError
from tinymusician.quantize.report import plot_sensitivity
from tinymusician.quantize.results import QuantizationResult
from tinymusician.training.metrics import Row

Curves = dict[str, list[Row]]


def training_curves(store: Store, labels: Mapping[str, str]) -> Curves:
    """By label, the training metrics of every student, or of the student that a bundle was made from, each once.

    `labels` are by model id.
    """
    curves: Curves = {}
    seen = set()
    for model_id, label in labels.items():
        manifest = _manifest(store, model_id)
        if manifest is not None and manifest.kind != "student":
            manifest = _manifest(store, str(manifest.lineage.get("model")))
        if manifest is None or manifest.digest in seen:
            continue
        seen.add(manifest.digest)
        rows = RunStore(store, str(manifest.lineage.get("run"))).metrics()
        if rows:
            curves[label] = rows
    return curves


def sensitivity_plots(store: Store, labels: Mapping[str, str]) -> list[tuple[str, bytes]]:
    """Label and plot of every bundle whose groups were measured one by one."""
    plots = []
    for model_id, label in labels.items():
        manifest = _manifest(store, model_id)
        if manifest is None:
            continue
        try:
            result = RunStore(store, str(manifest.lineage.get("run"))).report(QuantizationResult)
        except (NotFoundError, DigestMismatchError):
            continue
        if result.sensitivity is not None:
            plots.append((label, plot_sensitivity(result.sensitivity)))
    return plots


def _manifest(store: Store, model_id: str) -> Manifest | None:
    reference = parse_label(model_id)[1]
    if "@sha256:" not in reference:
        return None
    try:
        return find(store, reference)
    except NotFoundError:
        return None
