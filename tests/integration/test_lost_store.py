"""A store that is unreachable during a training: the run waits, and its results do not change."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.ray_cluster import (
    LONG,
    Ray,
    UndisturbedRuns,
    check_same_losses,
    losses,
    settings,
    tmctl_json,
    wait_for_checkpoint,
)
from tests.s3_server import S3Server
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import Store

pytestmark = pytest.mark.slow

AWAY = float(os.environ.get("TINYMUSICIAN_STORE_AWAY", "5"))
"""Seconds; the figures in docs/lab-log.md are for 60."""


def test_store_that_recovers(
    ray: Ray, recipe: Path, s3: S3Server, s3_store: Store, undisturbed: UndisturbedRuns
) -> None:
    """No worker is restarted, the losses at every step are those of a calm run, and who watches it watches on."""
    values = settings((*LONG, "training.max_restarts=0"))
    with ThreadPoolExecutor(1) as pool:
        watch = pool.submit(tmctl_json, ray, s3_store, "submit", "distill", str(recipe), *values, "--name", "r")
        wait_for_checkpoint(s3_store, "r")
        with s3.gone():
            time.sleep(AWAY)
    assert watch.result()["state"] == "SUCCEEDED"
    check_same_losses(losses(s3_store, "r"), undisturbed.losses(1))
    log = RunStore(s3_store, "r").log()
    assert "next attempt in" in log
    assert log.count("distill: from") == 1
