"""Runs in the store: records, states, heartbeats."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from jobs.cli.compare_runs import comparison_page, differing_settings, read_run, result_rows
from jobs.launch.submit import is_alive, reconcile, resume_target, stop
from jobs.launch.trusted_clusters import remember_cluster
from jobs.pipeline import Pipeline
from tinymusician.artifacts.append_log import AppendLog
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.run_state import Allocation, PipelineStep, RunRecord, RunResult, check_run_name, now
from tinymusician.artifacts.run_summary import list_runs, summarize
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore
from tinymusician.errors import ClusterError, KeyFileError, RunError
from tinymusician.recipe import load_recipe


def record(name: str, **changes: object) -> RunRecord:
    facts = {
        "id": name,
        "kind": "distill",
        "recipe": {"name": "band"},
        "workers": 2,
        "created": now(),
        "versions": {},
        "git": {},
        "seeds": {"training": 0},
        "cluster": "http://127.0.0.1:1",
        "submission": "x",
    }
    return RunRecord.model_validate({**facts, **changes})


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def test_a_run_from_start_to_end(store: LocalStore) -> None:
    run = RunStore(store, "r1")
    assert not run.exists()
    run.write_record(record("r1"))
    assert summarize(run).state == "PENDING"
    run.start()
    run.heartbeat()
    run.report_progress("distill", 5, 10)
    assert (summarize(run).state, summarize(run).step, summarize(run).steps) == ("RUNNING", 5, 10)
    run.succeed(RunResult(artifact="band@sha256:00", metrics={"kl_final": 0.1}))
    facts = summarize(run).facts()
    assert facts["state"] == "SUCCEEDED"
    assert set(facts) >= {"id", "kind", "recipe", "state", "artifact", "started", "ended", "metrics"}
    assert facts["started"] < facts["ended"]
    assert facts["metrics"] == {"kl_final": 0.1}


def test_missing_heartbeat_means_a_dead_cluster(store: LocalStore) -> None:
    run = RunStore(store, "r1")
    run.write_record(record("r1"))
    run.start()
    RunStore(store, "r1", lambda: now() - timedelta(seconds=90)).heartbeat()
    assert summarize(run).state == "FAILED"
    assert "--resume" in summarize(run).message
    run.heartbeat()
    assert summarize(run).state == "RUNNING"


def test_runs_are_listed_by_age(store: LocalStore) -> None:
    for name, age in (("b", 1), ("a", 2), ("c", 0)):
        RunStore(store, name).write_record(record(name, created=now() - timedelta(hours=age)))
    warnings: list[str] = []
    assert [summary.id for summary in list_runs(store, warnings.append)] == ["a", "b", "c"]
    assert warnings == []
    store.put("runs/b/status.json", b'{"state": 7}')
    store.put("runs/c/record.json", b"{")
    assert [summary.id for summary in list_runs(store, warnings.append)] == ["a"]
    assert [line.split(":")[0] for line in warnings] == ["run 'b'", "run 'c'"]


@pytest.fixture
def cluster_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster of `record` is one that jobs were submitted to from here."""
    monkeypatch.delenv("TMCTL_CLUSTER", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    remember_cluster("http://127.0.0.1:1")


@pytest.mark.usefixtures("cluster_of_this_machine")
def test_resumed_run_keeps_its_settings(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers and its cluster are its own, unless others are asked for."""
    run = RunStore(store, "r1")
    run.write_record(record("r1"))
    assert resume_target(run, "distill", None, None) == (2, "http://127.0.0.1:1")
    assert resume_target(run, "distill", 2, "http://other:8265") == (2, "http://other:8265")
    assert resume_target(run, "distill", 1, None) == (1, "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", "http://ray:8265")
    assert resume_target(run, "distill", 1, None) == (1, "http://ray:8265")
    monkeypatch.setenv("TMCTL_CLUSTER", "http://head:8265")
    assert resume_target(run, "distill", 1, None) == (1, "http://head:8265")
    monkeypatch.delenv("TMCTL_CLUSTER")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # no dashboard: the address inside a Ray job
    assert resume_target(run, "distill", 1, None) == (1, "http://127.0.0.1:1")
    run.write_record(record("r1", local_ray=True))
    assert resume_target(run, "distill", 1, None) == (1, None), "a local Ray may have another address by now"
    with pytest.raises(RunError, match="resume it with `tmctl submit distill`"):
        resume_target(run, "pretrain", None, None)
    run.start()
    run.succeed(RunResult())
    with pytest.raises(RunError, match="nothing to resume"):
        resume_target(run, "distill", None, None)


@pytest.mark.usefixtures("cluster_of_this_machine")
def test_an_evaluation_that_succeeded_may_repeat_its_later_steps(store: LocalStore) -> None:
    run = RunStore(store, "r1")
    run.write_record(record("r1", kind="evaluate"))
    run.start()
    run.succeed(RunResult())
    with pytest.raises(RunError, match="repeat a step with `--from embed`, `aggregate` or `render`"):
        resume_target(run, "evaluate", None, None)
    assert resume_target(run, "evaluate", None, None, rerun=True)[0] == 2
    run.submit()
    assert run.status().state == "PENDING"


@pytest.mark.usefixtures("cluster_of_this_machine")
def test_job_that_never_started_is_not_awaited(store: LocalStore) -> None:
    run = RunStore(store, "r1")
    run.write_record(record("r1"))
    run.submit()
    reconcile(run)
    assert run.status().state == "PENDING"
    RunStore(store, "r1", lambda: now() - timedelta(seconds=90)).submit()
    reconcile(run)
    assert run.status().state == "FAILED"
    assert "--resume" in run.status().message


def test_unknown_run(store: LocalStore) -> None:
    with pytest.raises(RunError, match="tmctl runs"):
        RunStore(store, "none").record()
    for name in ("", "-x", "A", "a/b", "../a", "a" * 100, "a\n"):
        with pytest.raises(RunError, match="lower-case letters"):
            check_run_name(name)


def test_states_follow_each_other(store: LocalStore) -> None:
    run = RunStore(store, "r1")
    with pytest.raises(RunError, match="is PENDING and cannot become SUCCEEDED"):
        run.succeed(RunResult())
    run.write_error("an earlier error")
    run.write_fatal_error("an earlier refusal")
    run.start()
    assert (run.error(), run.fatal_error()) == (None, None)
    run.stop()
    run.submit()
    assert (run.status().state, run.status().message, run.status().ended) == ("PENDING", "", None)
    run.start()
    run.succeed(RunResult(artifact="band@sha256:00"))
    for transition in (run.stop, lambda: run.fail("late")):
        with pytest.raises(RunError, match="is SUCCEEDED"):
            transition()
    assert run.status().artifact == "band@sha256:00"


def test_clocks_that_differ_fail_no_run(store: LocalStore) -> None:
    """A heartbeat of another clock looks old; the cluster says whether the run lives."""
    behind = RunStore(store, "a", clock=lambda: now() - timedelta(minutes=5))
    behind.write_record(record("a"))
    behind.start()
    behind.heartbeat()
    assert summarize(behind).state == "FAILED"
    assert summarize(behind, lambda record: record.id == "a").state == "RUNNING"
    assert [run.state for run in list_runs(store, print, lambda record: True)] == ["RUNNING"]


def test_runs_are_compared(store: LocalStore) -> None:
    """The settings that differ, results by name, and one page with the curves."""
    test_kl = {"kl_test": 0.2, "kl_test_interval": [0.1, 0.25]}
    for name, steps, kl in (("a", 50, 0.25), ("b", 100, 0.125)):
        run = RunStore(store, name)
        run.write_record(record(name, recipe={"name": "band", "training": {"steps": steps, "seed": 0}}))
        run.start()
        run.succeed(RunResult(metrics={"kl_final": kl, "plan": "adaptive", **test_kl}))
        row = f'{{"step": 1, "loss": 2.0, "held_out/kl": {kl}}}\n'
        AppendLog(store, run.metrics_key()).append(row.encode())
    compared = [read_run(RunStore(store, name)) for name in ("a", "b")]
    assert differing_settings(compared) == [["training.steps", "50", "100"]]
    assert result_rows(compared) == [
        ["state", "SUCCEEDED", "SUCCEEDED"],
        ["kl_final", "0.25", "0.125"],
        ["kl_test", *["0.200 [0.100, 0.250]"] * 2],
    ]
    page = comparison_page(compared)
    assert "training.steps" in page
    assert page.count("<img") == 1
    assert differing_settings(compared[:1]) == []
    with pytest.raises(RunError, match="'c'"):
        read_run(RunStore(store, "c"))


def test_a_run_says_what_it_holds_and_waits_for(store: LocalStore) -> None:
    """And a pipeline what its step holds; what has ended holds nothing."""
    run, pipeline = RunStore(store, "a"), RunStore(store, "p")
    run.write_record(record("a", user="clara", host="laptop"))
    run.start()
    run.write_allocation(Allocation(workers=8, cpus=12, gpus=1))
    pipeline.write_record(record("p", kind="pipeline"))
    pipeline.start()
    pipeline.write_pipeline([PipelineStep(step="distill", state="RUNNING", run="a")])
    for each in (run, pipeline):
        assert summarize(each).holds == "8 x (1 GPU, 12 CPU)"
    assert (summarize(run).user, summarize(run).host) == ("clara", "laptop")
    run.wait("waiting for 8 GPUs: 3 of 8 are free")
    assert summarize(run).holds == "waiting for 8 GPUs: 3 of 8 are free"
    run.fail("late")
    assert summarize(run).holds == ""


def test_pipeline_without_a_release_key_fails_before_its_first_step(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a cluster, which the submitting machine cannot ask."""
    keys = tmp_path / "keys"
    monkeypatch.setenv("TMCTL_KEYS", str(keys))
    ReleaseRegistry(store, keys).create()
    for path in keys.glob("release-*"):
        path.unlink()
    run = RunStore(store, "p")
    run = run.write_record(record("p", kind="pipeline", recipe=load_recipe("band").model_dump(mode="json")))
    with pytest.raises(KeyFileError, match=r"the release key is not here.*--until evaluate"):
        Pipeline(run).run()
    assert {step.state for step in run.pipeline()} <= {"PENDING", "SKIPPED"}


class DashboardThatEnds(BaseHTTPRequestHandler):
    """Answers the first request of a client of Ray's Jobs API, and closes the connection of every other."""

    def do_GET(self) -> None:
        if self.path != "/api/version":
            return
        body = b'{"version": "4", "ray_version": "2.0.0", "ray_commit": ""}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        return

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def dashboard_that_ends() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), DashboardThatEnds) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.usefixtures("cluster_of_this_machine")
def test_a_dashboard_that_ends_between_two_requests(store: LocalStore, dashboard_that_ends: str) -> None:
    """It says nothing about the job: who watches the run goes on, who stops it learns that nobody answered."""
    remember_cluster(dashboard_that_ends)
    run = RunStore(store, "r1")
    run.write_record(record("r1", cluster=dashboard_that_ends))
    run.submit()
    reconcile(run)
    assert run.status().state == "PENDING"
    assert not is_alive(run.record())
    with pytest.raises(ClusterError, match=r"ended the connection .*; try again"):
        stop(run)
