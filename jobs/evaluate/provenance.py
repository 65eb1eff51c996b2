"""How judged models came to be, as far as the store still knows: students' curves, and what bundles' groups mind."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.worker.model_refs import split_label
from tinymusician.artifacts.manifest import Manifest, find
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import Store
from tinymusician.errors import NotFoundError
from tinymusician.quantize.report import plot_sensitivity
from tinymusician.quantize.sensitivity import from_facts
from tinymusician.training.metrics import Row, read_metrics

Curves = dict[str, list[Row]]


def curves(store: Store, names: Mapping[str, str]) -> Curves:
    """Metrics of every student that is judged, or that a judged bundle was made of, each once; `names` by voice."""
    curves: Curves = {}
    seen = set()
    for model_id, name in names.items():
        manifest = _manifest(store, model_id)
        if manifest is not None and manifest.kind != "student":
            manifest = _manifest(store, str(manifest.lineage.get("model")))
        if manifest is None or manifest.digest in seen:
            continue
        seen.add(manifest.digest)
        rows = read_metrics(store, RunStore(store, str(manifest.lineage.get("run"))).metrics_key())
        if rows:
            curves[name] = rows
    return curves


def sensitivities(store: Store, names: Mapping[str, str]) -> list[tuple[str, bytes]]:
    """A picture for every bundle whose groups were measured one by one."""
    tables = []
    for model_id, name in names.items():
        manifest = _manifest(store, model_id)
        run = RunStore(store, str(manifest.lineage.get("run"))) if manifest is not None else None
        table = run.report().get("sensitivity") if run is not None else None
        if table:
            tables.append((name, plot_sensitivity(from_facts(table))))
    return tables


def _manifest(store: Store, model_id: str) -> Manifest | None:
    reference = split_label(model_id)[1]
    if "@sha256:" not in reference:
        return None
    try:
        return find(store, reference)
    except NotFoundError:
        return None
