"""Ray's token goes to clusters that a user of this machine has named, and to none that only the store names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli.main import app
from jobs.launch.trusted_clusters import check_trusted, remember_cluster
from tests.unit.test_runs import record
from tinymusician.artifacts.run_state import now
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore
from tinymusician.errors import ClusterError
from tinymusician.recipe import load_recipe

TOKEN = "0123456789abcdef" * 4


class Recorder(ThreadingHTTPServer):
    """A server that notes the Authorization header of every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Recorder

    def do_GET(self) -> None:
        self.server.received.append(self.headers.get("Authorization", ""))
        self.send_error(404)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def thief() -> Iterator[Recorder]:
    with Recorder() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thief: Recorder) -> LocalStore:
    """A store with the record of a run that names the thief's server as its cluster."""
    for name in ("TMCTL_CLUSTER", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("TMCTL_STORE", f"file://{tmp_path / 'store'}")
    store = LocalStore(tmp_path / "store")
    run = RunStore(store, "r1")
    content = load_recipe("band").model_dump(mode="json")
    run.write_record(record("r1", recipe=content, cluster=thief.address, submission="s", created=now(), head_id="a"))
    run.submit()
    return store


@pytest.mark.parametrize(
    "command",
    [
        ["status", "r1"],
        ["runs"],
        ["logs", "r1"],
        ["stop", "r1"],
        ["submit", "distill", "--resume", "r1"],
        ["artifacts", "gc"],
    ],
)
def test_no_command_sends_the_token_to_a_recorded_address(
    store: LocalStore, thief: Recorder, command: list[str]
) -> None:
    result = CliRunner().invoke(app, command)
    assert thief.received == []
    assert not isinstance(result.exception, AssertionError)


def test_what_a_command_says_of_a_cluster_that_it_does_not_ask(store: LocalStore, thief: Recorder) -> None:
    assert "state: PENDING" in CliRunner().invoke(app, ["status", "r1"]).output
    refused = CliRunner().invoke(app, ["stop", "r1"])
    assert isinstance(refused.exception, ClusterError)
    assert f"if it is yours, set TMCTL_CLUSTER={thief.address}" in str(refused.exception)


@pytest.mark.parametrize("how", ["environment", "submission"])
def test_a_cluster_that_the_user_names_gets_the_token(
    store: LocalStore, thief: Recorder, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "environment":
        monkeypatch.setenv("TMCTL_CLUSTER", thief.address)
    else:
        remember_cluster(thief.address)
    CliRunner().invoke(app, ["status", "r1"])
    assert f"Bearer {TOKEN}" in thief.received


def test_addresses_are_remembered_together(store: LocalStore, thief: Recorder) -> None:
    for address in (thief.address, "http://head:8265"):
        remember_cluster(address)
    check_trusted(thief.address)
    check_trusted("http://head:8265")
    with pytest.raises(ClusterError, match="only the run's record in the store names it"):
        check_trusted("http://other:8265")
