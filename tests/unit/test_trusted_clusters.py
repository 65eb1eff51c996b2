"""Ray's token goes to clusters that a user of this machine has named, and to none that only the store names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli.main import app
from jobs.launch.submit import resume_target
from jobs.launch.trusted_clusters import check_trusted, remember_cluster
from tests.unit.test_runs import record
from tinymusician.artifacts.run_state import now
from tinymusician.artifacts.run_summary import summarize
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore
from tinymusician.errors import ClusterError, RunError
from tinymusician.recipe import load_recipe

TOKEN = "0123456789abcdef" * 4


class Recorder(ThreadingHTTPServer):
    """A server that notes the Authorization header of every request.

    Ray's client caches whether there is a token, so the header may be empty here; what counts is who is asked.
    """

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
def recorder() -> Iterator[Recorder]:
    with Recorder() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> LocalStore:
    """A store with the record of a run that names the recorder as its cluster."""
    for name in ("TMCTL_CLUSTER", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("TMCTL_STORE", f"file://{tmp_path / 'store'}")
    store = LocalStore(tmp_path / "store")
    run = RunStore(store, "r1")
    content = load_recipe("band").model_dump(mode="json")
    run.write_record(record("r1", recipe=content, cluster=recorder.address, submission="s", created=now(), head_id="a"))
    run.submit()
    return store


COMMANDS = (["status", "r1"], ["runs"], ["logs", "r1"], ["stop", "r1"], ["submit", "distill", "band", "--resume", "r1"])


@pytest.fixture
def silent_run(store: LocalStore) -> RunStore:
    """The run has begun, and its heartbeat is late: every command would ask the cluster what became of it."""
    run = RunStore(store, "r1")
    run.start()
    RunStore(store, "r1", lambda: now() - timedelta(seconds=90)).heartbeat()
    assert summarize(run).state == "FAILED"
    return run


@pytest.mark.usefixtures("silent_run")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("is_remembered", [False, True])
def test_the_token_goes_to_a_recorded_address_only_if_the_user_named_it(
    recorder: Recorder, command: list[str], is_remembered: bool
) -> None:
    if is_remembered:
        remember_cluster(recorder.address)
    CliRunner().invoke(app, command)
    assert bool(recorder.received) is is_remembered


def test_what_a_command_says_of_a_cluster_that_it_does_not_ask(store: LocalStore, recorder: Recorder) -> None:
    assert "state: PENDING" in CliRunner().invoke(app, ["status", "r1"]).output
    refused = CliRunner().invoke(app, ["stop", "r1"])
    assert isinstance(refused.exception, ClusterError)
    assert f"if it is yours, set TMCTL_CLUSTER={recorder.address}" in str(refused.exception)


def test_status_stays_where_the_cluster_is_not_trusted(store: LocalStore) -> None:
    """Another machine's run waits longer than a minute: this machine does not know that it is lost."""
    run = RunStore(store, "r1")
    RunStore(store, "r1", lambda: now() - timedelta(seconds=90)).submit()
    CliRunner().invoke(app, ["status", "r1"])
    assert run.status().state == "PENDING"


def test_resume_with_the_cluster_of_the_command(silent_run: RunStore, recorder: Recorder) -> None:
    resume_target(silent_run, "distill", None, recorder.address)
    assert recorder.received


def test_run_with_a_heartbeat_is_not_resumed_elsewhere(store: LocalStore, recorder: Recorder) -> None:
    run = RunStore(store, "r1")
    run.start()
    run.heartbeat()
    with pytest.raises(RunError, match="is still running"):
        resume_target(run, "distill", None, "http://other:8265")
    assert recorder.received == []


def test_a_cluster_in_the_environment_gets_the_token(
    store: LocalStore, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMCTL_CLUSTER", recorder.address)
    CliRunner().invoke(app, ["status", "r1"])
    assert recorder.received


def test_addresses_are_remembered_together(store: LocalStore, recorder: Recorder) -> None:
    for address in (recorder.address, "http://head:8265"):
        remember_cluster(address)
    check_trusted(recorder.address)
    check_trusted("http://head:8265")
    with pytest.raises(ClusterError, match="only the run's record in the store names it"):
        check_trusted("http://other:8265")
