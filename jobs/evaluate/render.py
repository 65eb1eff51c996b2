"""The render step: turns a run's report.json into pages. It only reads; it never generates or trains."""

from __future__ import annotations

from jobs.evaluate.provenance import sensitivity_plots, training_curves
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import NotFoundError
from tinymusician.evaluate.audio import decode_flac
from tinymusician.evaluate.report import AudioSample, html_report, markdown_report
from tinymusician.evaluate.results import AudioClip, EvaluationResult


def render(run: RunStore) -> None:
    """Write a run's report.html and report.md.

    Raises:
        NotFoundError: the run has no report.json, or an audio sample is missing.
    """
    try:
        result = run.report(EvaluationResult)
    except NotFoundError as error:
        raise NotFoundError(f"run {run.id!r}: has no report.json; run it again with `--from aggregate`") from error
    samples = [(one.prompt, [_load_sample(run, clip) for clip in one.clips]) for one in result.samples]
    labels = {model.model_id: model.label for model in result.models}
    curves, plots = training_curves(run.store, labels), sensitivity_plots(run.store, labels)
    run.write_rendered_report(html_report(result, samples, curves, plots), markdown_report(result))


def _load_sample(run: RunStore, clip: AudioClip) -> AudioSample:
    try:
        flac = run.audio(clip.file)
    except NotFoundError as error:
        missing = f"run {run.id!r}: audio sample {clip.file} of {clip.label} is missing"
        raise NotFoundError(f"{missing}; run it again with `--from aggregate`") from error
    wave, rate = decode_flac(flac)
    return AudioSample(clip.label, wave, rate, flac)
