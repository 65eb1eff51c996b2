"""The origin of evaluated models: training curves of students, sensitivities of bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.evaluate.provenance import sensitivity_plots, training_curves
from tinymusician.artifacts.append_log import AppendLog
from tinymusician.artifacts.manifest import Manifest, publish
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore
from tinymusician.quantize.precision import packaged_plan
from tinymusician.quantize.results import QuantizationMetrics, QuantizationResult
from tinymusician.quantize.sensitivity import GroupSensitivity

TABLE: Any = {
    "layer 0": {"float32": GroupSensitivity(100, (0.0, 0.0)), "int8": GroupSensitivity(30, (0.25, 1e-7))},
    "layer 1": {"float32": GroupSensitivity(100, (0.0, 0.0)), "int8": GroupSensitivity(30, (0.5, 0.125))},
}
ROWS = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "held_out/kl": 0.125}]


def quantization(sensitivity: Any) -> QuantizationResult:
    plan = packaged_plan("float32")
    metrics = QuantizationMetrics(
        plan=plan.name, size=1, float32_checkpoint_size=1, share_of_float32=1.0, kl_calibration=0.0,
        kl_per_codebook=(0.0,), agreement=1.0, codec_snr_db=float("inf"),
    )  # fmt: skip
    return QuantizationResult(
        recipe="x", model="y", plan=plan, metrics=metrics, kl_budget=None, points=(), sensitivity=sensitivity,
        parity={}, providers=(),
    )  # fmt: skip


def made(store: LocalStore, folder: Path, kind: str, lineage: dict[str, Any]) -> Manifest:
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_text(kind)
    facts = {"recipe": {}, "metrics": {}, "licence": "Apache-2.0"}
    return publish(store, folder, name=kind, kind=kind, lineage=lineage, **facts)


def test_a_student_and_its_bundle(tmp_path: Path) -> None:
    """A student is drawn once, whether it is judged itself or in a bundle; what the store lacks is left out."""
    store = LocalStore(tmp_path / "store")
    student = made(store, tmp_path / "files", "student", {"run": "r1"}).reference
    bundle = made(store, tmp_path / "files", "bundle", {"run": "r2", "model": student}).reference
    packaged = made(store, tmp_path / "files", "optimum", {"run": "r3", "model": "band-small"}).reference
    names = {packaged: "packaged", bundle: "its bundle", student: "itself", "teacher": "teacher"}
    gone = "student@sha256:" + "0" * 64
    assert training_curves(store, names | {gone: "gone"}) == {}
    assert sensitivity_plots(store, names | {gone: "gone"}) == []

    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    AppendLog(store, RunStore(store, "r1").metrics_key()).append(rows.encode())
    RunStore(store, "r2").write_report(quantization(TABLE))
    RunStore(store, "r3").write_report(quantization(None))
    assert training_curves(store, names) == {"its bundle": ROWS}
    ((name, picture),) = sensitivity_plots(store, names)
    assert name == "its bundle"
    assert picture.startswith(b"\x89PNG")


def test_sensitivity_table_round_trips_through_json(tmp_path: Path) -> None:
    run = RunStore(LocalStore(tmp_path), "r")
    run.write_report(quantization(TABLE))
    assert run.report(QuantizationResult).sensitivity == TABLE
