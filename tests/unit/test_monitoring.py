"""Alerts and dashboard: their metrics exist, alerts fire, each has its runbook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from jobs.worker.prometheus import EXPORTED_METRICS, LAST_STEP
from serve.metrics import EngineMetrics, IngressMetrics

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "infra/monitoring"


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[str]:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]] + [rule["expr"] for rule in rules()]


def test_every_queried_metric_exists() -> None:
    measured = {metric.info["name"] for kind in (IngressMetrics(), EngineMetrics()) for metric in vars(kind).values()}
    measured |= {f"tinymusician_training_{name.replace('/', '_')}" for name in (*EXPORTED_METRICS, LAST_STEP)}
    queried = {name for query in queries() for name in re.findall(r"ray_(tinymusician_\w+)", query)}
    assert {re.sub(r"_(total|bucket)$", "", name) for name in queried} == measured - {
        "tinymusician_request_seconds"
    } - {"tinymusician_training_gradient_norm"}


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    pages = {path.name: path.read_text() for path in (ROOT / "docs/runbooks").glob("*.md")}
    for rule in rules():
        page = pages[Path(rule["annotations"]["runbook"]).name]
        assert rule["alert"] in page.splitlines()[0]
        assert "## What to do" in page
    assert set(pages) == {Path(rule["annotations"]["runbook"]).name for rule in rules()}


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    """What its own schema reads and writes again is what stands there, except for what it adds."""
    register_default_plugins()
    written = json.loads((MONITORING / "dashboard.json").read_text())
    read = json.loads(json.dumps(Dashboard.from_json(written), cls=JSONEncoder))

    def survives(one: Any, other: Any) -> bool:
        if isinstance(one, dict):
            return all(key in other and survives(one[key], other[key]) for key in one)
        if isinstance(one, list):
            return len(one) == len(other) and all(map(survives, one, other))
        return bool(one == other)

    assert survives(written, read)


def test_panels_do_not_overlap() -> None:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here: `apt-get install prometheus`")
@pytest.mark.parametrize(
    "words",
    [
        ["check", "config", str(MONITORING / "prometheus.yml")],
        ["test", "rules", str(ROOT / "tests/alerts.yml")],
    ],
)
def test_prometheus_agrees(words: list[str]) -> None:
    ended = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr + ended.stdout
