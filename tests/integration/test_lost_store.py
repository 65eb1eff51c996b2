"""A store that is gone for a while in the middle of a training: the run waits, and goes on as if nothing had been."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.ray_cluster import Ray, losses, settings, told, wait_for
from tests.s3_server import S3Server
from tinymusician.artifacts.runs import RunFolder
from tinymusician.artifacts.store import Store

pytestmark = pytest.mark.slow

AWAY = float(os.environ.get("TINYMUSICIAN_STORE_AWAY", "10"))
"""Seconds; the figures in docs/lab-log.md are for 60."""
LONG = ("training.steps=60", "training.checkpoint_every=10", "training.validate_every=30", "training.restarts=0")


def test_a_store_that_comes_back(ray: Ray, recipe: Path, s3: S3Server, s3_store: Store) -> None:
    """No worker is restarted, and the losses at every step are those of a calm run."""
    told(ray, s3_store, "submit", "distill", str(recipe), *settings(LONG), "--name", "calm")
    told(ray, s3_store, "submit", "distill", str(recipe), *settings(LONG), "--name", "r", "--no-wait")
    wait_for(lambda: any("step-00000010.json" in entry.key for entry in s3_store.list("runs/r/checkpoints/")))
    with s3.gone():
        time.sleep(AWAY)
    wait_for(lambda: RunFolder(s3_store, "r").status().state == "SUCCEEDED")
    found, wanted = losses(s3_store, "r"), losses(s3_store, "calm")
    assert sorted(found) == sorted(wanted)
    assert max(abs(found[step] - wanted[step]) for step in wanted) <= 1e-5
    log = RunFolder(s3_store, "r").log()
    assert "asking again" in log
    assert log.count("distill: from") == 1
