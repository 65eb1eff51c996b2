"""The page of `make demo`: a player for every clip, the figures of the run, and no other file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from jobs.examples.demo_page import DemoClip, Generated, demo_page
from tests.unit.test_runs import record
from tinymusician.artifacts.append_log import AppendLog
from tinymusician.artifacts.run_state import RunResult
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore

RATE = 8000


def test_the_page_of_the_demo(tmp_path: Path) -> None:
    run = RunStore(LocalStore(tmp_path), "band-demo-1")
    run.write_record(record(run.id))
    run.write_result(RunResult(artifact="band@sha256:" + "0" * 64, metrics={"kl_initial": 6.125, "kl_final": 0.25}))
    rows = (
        '{"step": 1, "loss": 2.0, "loss/1": 2.0, "held_out/kl": 1.0, "held_out/kl/1": 1.0}\n',
        '{"step": 2, "loss": 1.0}\n',
    )
    AppendLog(run.store, run.metrics_key()).append("".join(rows).encode())
    tone = DemoClip((0.5 * np.sin(np.arange(RATE) / 5)).astype(np.float32), RATE)
    silence = DemoClip(np.zeros(RATE, np.float32), RATE)
    generated = [
        Generated("teacher", (tone, tone), 25_000_000, 0.5),
        Generated("untrained student", (tone, silence), 12_000_000, 0.125),
    ]
    page = demo_page(run, tmp_path / "device", ("a jig", "a reel"), generated, 7.25)
    assert page.count("<audio") == 4
    assert page.count("<img") == 5, "a spectrogram for each clip, and the training curves"
    assert not re.search(r'(src|href)="(?!data:)', page), "it needs no other file"
    for text in ("6.125", "0.250", "50.0%", "0.0%", "25.0", "0.12", "7.2 minutes", "tmctl serve band-bundle"):
        assert text in page, text
