"""Renders an evaluation's report: an HTML page with audio, and the same tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tinymusician.evaluate.report_plots import plot_codebooks, plot_cost, plot_extrapolation, plot_front, plot_training
from tinymusician.evaluate.report_tables import (
    Table,
    adherence_table,
    agreement_table,
    cost_table,
    degenerate_table,
    difference_table,
    folder_table,
    label_table,
    summary_table,
    worst_table,
)
from tinymusician.evaluate.results import EvaluationResult
from tinymusician.evaluate.spectrograms import plot_spectrogram
from tinymusician.html_report import (
    html_note,
    html_picture,
    html_player,
    html_side_by_side,
    html_table,
    html_text,
    page,
)
from tinymusician.markdown import markdown_table
from tinymusician.runtime.audio_reader import Wave
from tinymusician.training.metrics import Row


@dataclass(frozen=True)
class AudioSample:
    """A clip to listen to: the label of its model, its mono wave at `rate` Hz, and the same encoded as FLAC."""

    label: str
    wave: Wave
    rate: int
    flac: bytes


def html_report(
    result: EvaluationResult,
    samples: Sequence[tuple[str, Sequence[AudioSample]]],
    curves: Mapping[str, Sequence[Row]],
    sensitivities: Sequence[tuple[str, bytes]],
) -> str:
    """The page.

    `samples` are the clips of each prompt, `curves` the training metrics of students by label, `sensitivities` the
    PNG plots of bundles with their labels.
    """
    models, sets = result.models, result.sets
    parts = [("Summary", html_table(*summary_table(result)) + html_note(_SUMMARY))]
    if len(sets) > 1:
        parts.append((f"Difference from {sets[0].label}", html_table(*difference_table(sets)) + html_note(_DIFFERENCE)))
    parts.append(("Listen", "".join(_players(prompt, clips) for prompt, clips in samples)))
    if models:
        picture = html_picture(plot_front(models), "size of each model against its FAD and CLAP score")
        parts.append(("Size against quality", picture))
    if any(clips.distribution.fad_points for clips in sets):
        picture = html_picture(plot_extrapolation(sets), "FAD over one over the number of clips")
        parts.append(("FAD and the number of clips", picture))
    if any(model.agreement for model in models):
        picture = html_picture(plot_codebooks(models), "KL to the teacher by codebook")
        parts.append(("Agreement with the teacher", html_table(*agreement_table(models)) + picture))
    parts += _content_parts(result)
    if any(model.cost for model in models):
        picture = html_picture(plot_cost(models), "cost of generation")
        parts.append(("Cost", html_table(*cost_table(models)) + picture + html_note(_COST)))
    parts += _origin_parts(curves, sensitivities)
    parts.append(("Degenerate clips", html_table(*degenerate_table(sets))))
    if any(clips.worst for clips in sets):
        parts.append(("Clips furthest from the reference", html_table(*worst_table(sets))))
    if result.folders:
        parts.append(("Folders of audio", html_table(*folder_table(result.folders))))
    if notes := _notes(result):
        parts.append(("Metrics that could not be computed", html_text("\n".join(notes))))
    parts.append(("Measurement", html_table(*_provenance_table(result))))
    return page(f"{result.recipe}: evaluation", parts)


def _content_parts(result: EvaluationResult) -> Iterator[tuple[str, str]]:
    """What a classifier and a judge say about the clips."""
    if any(model.distribution.labels for model in result.models):
        yield "Labels by a classifier", html_table(*label_table(result))
    if (adherence := adherence_table(result))[1]:
        yield "Adherence to the prompts", html_table(*adherence) + html_note(_ADHERENCE)


def _origin_parts(
    curves: Mapping[str, Sequence[Row]], sensitivities: Sequence[tuple[str, bytes]]
) -> Iterator[tuple[str, str]]:
    """What is known of how students were trained and bundles were quantized."""
    if curves:
        picture = html_picture(plot_training(curves), "losses over training steps")
        yield "Training of the students", picture + html_note(_CURVES)
    if sensitivities:
        pictures = [html_note(one) + html_picture(picture, f"sensitivity of {one}") for one, picture in sensitivities]
        yield "Sensitivity to low precision", "".join(pictures)


def markdown_report(result: EvaluationResult) -> str:
    """The tables in Markdown."""
    models = result.models
    tables = [
        ("Summary", summary_table(result)),
        (f"Difference from {result.sets[0].label}", difference_table(result.sets)),
        ("Agreement with the teacher", agreement_table(models)),
        ("Labels by a classifier", label_table(result)),
        ("Adherence to the prompts", adherence_table(result)),
        ("Cost", cost_table(models)),
        ("Degenerate clips", degenerate_table(result.sets)),
        ("Folders of audio", folder_table(result.folders)),
        ("Measurement", _provenance_table(result)),
    ]
    text = [f"# {result.recipe}: evaluation\n"]
    text += [f"## {title}\n\n{markdown_table(*table)}\n" for title, table in tables if table[1]]
    if notes := _notes(result):
        text.append("## Metrics that could not be computed\n\n" + "\n".join(f"- {note}" for note in notes) + "\n")
    return "\n".join(text)


_SUMMARY = (
    "Values with 95 % intervals over clips. FAD and KAD are distances from the real clips: lower is nearer. FAD is "
    "biased by the number of clips; FAD∞ is extrapolated. CLAP is the cosine between clip and prompt: higher is "
    "nearer, but only as far as it exceeds the score of shuffled prompts. `real, reconstructed` are the real clips "
    "after the teacher's codec: a lower bound for the distance of every model that uses this codec. RTF, the real-time "
    "factor, is seconds of computation per second of audio."
)
_ADHERENCE = (
    "A model that answers questions about music is asked for what the prompts name. It errs, too: its scores of the "
    "real clips, and of the real clips after the codec, are the most that a model can reach."
)
_DIFFERENCE = (
    "CLAP: paired by clip; an interval without 0 is a difference. Distances: the difference between the values."
)
_CURVES = (
    "From the runs that trained them. Losses of different objectives or targets cannot be compared with each other, "
    "nor can the KL of a student of the guided distribution with that of a conditional one."
)
_COST = (
    "One clip at a time, in a process of its own on this machine, with nothing else of this job beside it. Memory is "
    "the peak that loading the model and generating took, beyond the libraries."
)


def _players(prompt: str, clips: Sequence[AudioSample]) -> str:
    players = [html_player(one.flac, "audio/flac", one.label, plot_spectrogram(one.wave, one.rate)) for one in clips]
    return html_note(prompt) + html_side_by_side(players)


def _notes(result: EvaluationResult) -> list[str]:
    return [f"{clips.label}: {note}" for clips in result.sets for note in clips.distribution.notes]


def _provenance_table(result: EvaluationResult) -> Table:
    return ("what", "value"), result.provenance.rows()
