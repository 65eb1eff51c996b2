"""`tmctl runs|status|logs|stop`: runs, their states, results and logs, read from the store."""

from __future__ import annotations

import codecs
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.output import emit, print_progress, printable, table, warn
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.run_state import ENDED, PipelineStep
from tinymusician.artifacts.run_summary import list_runs, summarize
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import RunError

RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, as `tmctl runs` lists it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


app = typer.Typer(
    rich_markup_mode="markdown",
    invoke_without_command=True,
    help="List all runs in the store, oldest first, compare some of them, or save an evaluation's reference.",
)


@app.callback()
def list_all(context: typer.Context, json: Json = False) -> None:
    """List all runs in the store, oldest first, compare some of them, or save an evaluation's reference."""
    if context.invoked_subcommand is not None:
        return
    from jobs.launch.submit import alive_checker

    summaries = list_runs(open_store(), warn, alive_checker())
    columns = ["RUN", "KIND", "STATE", "STEP", "USER", "HOST", "STARTED", "ARTIFACT, OR WHAT IT HOLDS OR WAITS FOR"]
    rows = [
        [
            run.id,
            run.kind,
            run.state,
            run.steps_done,
            run.user,
            run.host,
            (run.started or "")[:19],
            run.artifact or run.holds,
        ]
        for run in summaries
    ]
    emit([run.facts() for run in summaries], json, table(columns, rows) if rows else "no runs yet")


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Two or more runs' names.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The HTML file to write, with the training curves.")
    ] = Path("comparison.html"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json: Json = False,
) -> None:
    """Compare runs: the settings that differ, the results with their intervals, and the training curves.

    Examples:
    - `tmctl runs compare skewed plain`

    - `tmctl runs compare band-evaluate-20260101-120000-ab12 band-evaluate-20260102-120000-cd34 -o evaluations.html`
    """
    from jobs.cli.compare_runs import comparison_page, differing_settings, read_run, result_rows
    from tinymusician.artifacts.output_file import STDOUT, check_writable, write_output

    if len(runs) < 2:
        raise RunError(f"runs compare {runs[0]}: two runs or more are needed; `tmctl runs` lists them")
    check_writable(output, force)
    store = open_store()
    compared = [read_run(RunStore(store, name)) for name in runs]
    settings, results = differing_settings(compared), result_rows(compared)
    write_output(output, comparison_page(compared).encode())
    if output == STDOUT:
        return
    facts = {"runs": runs, "settings": _by_name(settings), "results": _by_name(results), "page": str(output)}
    tables = [table(["SETTING", *runs], settings)] if settings else ["all settings are equal"]
    emit(facts, json, "\n\n".join([*tables, table(["RESULT", *runs], results), f"curves: {output}"]))


@app.command()
def reference(
    run: RunName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .npz file to write.")] = Path("reference.npz"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json: Json = False,
) -> None:
    """Save the statistics of an evaluation's reference set: mean, covariance and embeddings.

    Later evaluations with the same embedding model need the real clips no longer.

    Examples:
    - `tmctl runs reference band-evaluate-20260101-120000-ab12 -o musiccaps.npz`

    - `tmctl submit evaluate --audio ./mine --reference musiccaps.npz`
    """
    from tinymusician.artifacts.output_file import STDOUT, check_writable, write_output

    if output != STDOUT and output.suffix.lower() != ".npz":
        raise RunError(f"--output {output}: a name that ends in .npz is needed, as `--reference` expects it")
    check_writable(output, force)
    folder = RunStore(open_store(), run)
    folder.record()
    write_output(output, content := folder.reference())
    if output == STDOUT:
        return
    emit({"run": run, "file": str(output), "bytes": len(content)}, json, f"{output}: {len(content)} bytes")


def _by_name(rows: list[list[str]]) -> dict[str, list[str]]:
    return {name: values for name, *values in rows}


def status(run: RunName, json: Json = False) -> None:
    """Show a run's state, step, metrics and artifact."""
    from jobs.launch.shortage import recorded_shortages, run_holder
    from jobs.launch.submit import is_alive, reconcile

    folder = RunStore(open_store(), run)
    folder.record()
    reconcile(folder)
    summary = summarize(folder, is_alive)
    facts = {**summary.facts(), "steps_done": summary.steps_done}
    lines = [
        f"{name}: {value}"
        for name, value in facts.items()
        if value not in (None, "", {}) and name not in _PRINTED_APART
    ]
    if summary.state not in ENDED and (summary.stage is None or summary.step == summary.steps):
        lines += [str(shortage) for shortage in recorded_shortages(folder.record().cluster, run_holder(run))]
    lines += [f"  {step.step}: {step.state}{_step_result(step)}" for step in summary.pipeline or ()]
    lines += [f"  {name}: {value}" for name, value in summary.metrics.items()]
    emit(facts, json, "\n".join(lines))


_PRINTED_APART = ("metrics", "pipeline")


def _step_result(step: PipelineStep) -> str:
    """The run and the artifact of a pipeline's step."""
    return "".join(f", {value}" for value in (step.run, step.artifact) if value)


def logs(
    run: RunName, follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the run ends.")] = False
) -> None:
    """Print a run's log."""
    from jobs.launch.submit import is_alive

    folder = RunStore(open_store(), run)
    if pipeline := folder.record().part_of:
        print_progress(f"run {run}: a step of pipeline {pipeline}, which has the log")
        folder = RunStore(folder.store, pipeline)
    reader, decoder = folder.log_reader(), codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        ended = summarize(folder, is_alive).state in ENDED
        sys.stdout.write(printable(decoder.decode(reader.read())))
        sys.stdout.flush()
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
    reconcile(folder)  # Ray may have ended the supervisor before it could write the state
    print(f"run {run}: {folder.status().state}")
