"""What the store knows of how models were made: training curves of students, sensitivities of bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.evaluate.provenance import curves, sensitivities
from tinymusician.artifacts.manifest import Manifest, publish
from tinymusician.artifacts.store import LocalStore
from tinymusician.quantize.sensitivity import GroupSensitivity, as_facts, from_facts

TABLE: Any = {
    "layer 0": {"float32": GroupSensitivity(100, (0.0, 0.0)), "int8": GroupSensitivity(30, (0.25, 1e-7))},
    "layer 1": {"float32": GroupSensitivity(100, (0.0, 0.0)), "int8": GroupSensitivity(30, (0.5, 0.125))},
}
ROWS = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "held_out/kl": 0.125}]


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
    assert curves(store, names | {gone: "gone"}) == {}
    assert sensitivities(store, names | {gone: "gone"}) == []

    store.put("runs/r1/metrics.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode())
    store.put("runs/r2/report.json", json.dumps({"sensitivity": as_facts(TABLE)}).encode())
    store.put("runs/r3/report.json", json.dumps({"sensitivity": None}).encode())
    assert curves(store, names) == {"its bundle": ROWS}
    ((name, picture),) = sensitivities(store, names)
    assert name == "its bundle"
    assert picture.startswith(b"\x89PNG")


def test_a_table_as_json() -> None:
    assert from_facts(json.loads(json.dumps(as_facts(TABLE)))) == TABLE
