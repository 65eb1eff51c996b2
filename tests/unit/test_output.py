"""What the command line prints of a store's content."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli.follow import follow
from jobs.cli.main import app
from jobs.cli.output import printable
from tests.unit.test_runs import record
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore


def test_control_characters_are_written_out() -> None:
    assert printable("a\x1b[2Jb\x07\x9b31m\x7f") == "a\\x1b[2Jb\\x07\\x9b31m\\x7f"
    assert printable("right\rwrong\r\n\tend é 音楽\n") == "right\nwrong\n\tend é 音楽\n"


def test_progress_does_not_drive_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunStore(LocalStore(tmp_path), "r")
    run.write_record(record("r"))
    run.start()
    run.report_progress("train\x1b[2J[bold]", 1, 2)
    run.fail("")
    follow(run, quiet=False)
    assert "FAILED train\\x1b[2J[bold] 1/2" in capsys.readouterr().err


def test_a_log_and_a_status_do_not_drive_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMCTL_STORE", tmp_path.as_uri())
    run = RunStore(LocalStore(tmp_path), "r")
    run.write_record(record("r"))
    run.start()
    run.log_writer().append(b"done\x1b]0;evil\x07\n")
    run.fail("no\x1b[1A space")
    assert CliRunner().invoke(app, ["logs", "r"]).stdout == "done\\x1b]0;evil\\x07\n"
    assert "message: no\\x1b[1A space" in CliRunner().invoke(app, ["status", "r"]).stdout
