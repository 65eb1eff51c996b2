"""When API keys were last used."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli.api_keys import app
from serve.key_usage import KeyUsage, read_usage, usage_file

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds)

    def __call__(self) -> float:
        return self.seconds


def test_uses_are_saved_once_a_minute(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "usage"
    usage = KeyUsage(path, clock.now, clock)
    usage.record("a")
    clock.seconds = 59
    usage.save()
    assert not path.exists()
    clock.seconds = 60
    usage.record("b")
    usage.save()
    assert read_usage(path) == {"a": NOON, "b": NOON + timedelta(seconds=60)}
    assert path.stat().st_mode & 0o777 == 0o600
    later = KeyUsage(path, clock.now, clock)
    clock.seconds = 200
    later.record("b")
    later.save()
    assert read_usage(path) == {"a": NOON, "b": NOON + timedelta(seconds=200)}, "after a restart, too"


def test_a_file_that_cannot_be_written_is_logged_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    clock = Clock()
    usage = KeyUsage(tmp_path / "file" / "usage", clock.now, clock)
    for minute in (1, 2, 3):
        clock.seconds = 60 * minute
        usage.record("a")
        usage.save()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["key_usage_not_saved"]


def test_list_shows_it(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    made = json.loads(CliRunner().invoke(app, ["create", "shop", "--file", str(file), "--json"]).stdout)
    CliRunner().invoke(app, ["create", "page", "--days", "3", "--file", str(file)])
    clock = Clock()
    usage = KeyUsage(usage_file(file), clock.now, clock)
    usage.record(made["id"])
    clock.seconds = 60
    usage.save()
    text = CliRunner().invoke(app, ["list", "--file", str(file)]).stdout
    shop, page = (line.split() for line in text.splitlines()[1:])
    assert shop[1:6] == ["shop", shop[2], "never", "2030-01-01", "12:00"]
    assert page[4] == "-"
    listed = json.loads(CliRunner().invoke(app, ["list", "--file", str(file), "--json"]).stdout)
    assert [one["last_use"] for one in listed] == [NOON.isoformat(), None]
    (tmp_path / "damaged").write_text("{")
    assert read_usage(tmp_path / "damaged") == {}
