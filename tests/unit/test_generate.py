"""`tmctl generate` on a terminal."""

from __future__ import annotations

import sys

import pytest

from jobs.cli.generate import progress


def test_progress_bar_starts_before_the_first_frame(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress(50.0) as on_progress:
        for done in (0, 0, 5, 10):
            on_progress(done, 10)
    assert "Traceback" not in capfd.readouterr().err
