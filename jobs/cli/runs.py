"""`tmctl runs|status|logs|stop`: what ran, how it stands, what it printed. All of it is read from the store."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from jobs.cli.output import emit, table, warn
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.run_state import ENDED
from tinymusician.artifacts.run_summary import list_runs, summary
from tinymusician.artifacts.runs import RunStore

RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, as `tmctl runs` lists it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def runs(json: Json = False) -> None:
    """List all runs in the store, oldest first."""
    statuses = list_runs(open_store(), warn)
    rows = [
        [
            r["id"],
            r["kind"],
            r["state"],
            f"{r['step']}/{r['steps'] or '?'}",
            r["artifact"] or "",
            (r["started"] or "")[:19],
        ]
        for r in statuses
    ]
    emit(
        statuses, json, table(["RUN", "KIND", "STATE", "STEP", "ARTIFACT", "STARTED"], rows) if rows else "no runs yet"
    )


def status(run: RunName, json: Json = False) -> None:
    """Show how a run stands: state, step, figures, artifact."""
    from jobs.launch.submit import reconcile

    folder = RunStore(open_store(), run)
    folder.record()
    reconcile(folder)
    facts = summary(folder)
    facts["steps_done"] = f"{facts['step']}/{facts['steps'] or '?'}"
    lines = [
        f"{name}: {value}"
        for name, value in facts.items()
        if value not in (None, "", {}) and name not in _PRINTED_APART
    ]
    lines += [f"  {one['step']}: {one['state']}{_step_result(one)}" for one in facts.get("pipeline", ())]
    lines += [f"  {name}: {value}" for name, value in facts["metrics"].items()]
    emit(facts, json, "\n".join(lines))


_PRINTED_APART = ("metrics", "pipeline")


def _step_result(step: dict[str, Any]) -> str:
    """What a pipeline's step left behind."""
    return "".join(f", {step[name]}" for name in ("run", "artifact") if step.get(name))


def logs(
    run: RunName, follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False
) -> None:
    """Print what a run printed."""
    folder = RunStore(open_store(), run)
    folder.record()
    printed = 0
    while True:
        ended = summary(folder)["state"] in ENDED
        text = folder.log()
        sys.stdout.write(text[printed:])
        sys.stdout.flush()
        printed = len(text)
        if ended or not follow:
            return
        time.sleep(1)


def stop(run: RunName) -> None:
    """Stop a run's job. It keeps its checkpoints; `tmctl submit … --resume RUN` continues it."""
    from jobs.launch.submit import is_alive, reconcile
    from jobs.launch.submit import stop as stop_job

    folder = RunStore(open_store(), run)
    stop_job(folder)
    for _ in range(40):
        if not is_alive(folder.record()):
            break
        time.sleep(0.5)
    reconcile(folder)  # a supervisor that Ray did not wait for has not said so
    print(f"run {run}: {folder.status().state}")
