"""The render step of a sweep: turns a run's report.json into pages. It only reads."""

from __future__ import annotations

from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import NotFoundError
from tinymusician.evaluate.sweep_report import html_sweep_report, markdown_sweep_report
from tinymusician.evaluate.sweep_results import SweepResult


def render(run: RunStore) -> None:
    """Write a run's report.html and report.md.

    Raises:
        NotFoundError: the run has no report.json.
    """
    try:
        result = run.report(SweepResult)
    except NotFoundError as error:
        raise NotFoundError(f"run {run.id!r}: has no report.json; resume the sweep") from error
    run.write_rendered_report(html_sweep_report(result), markdown_sweep_report(result))
