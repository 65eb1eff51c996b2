"""Renders a benchmark: an HTML page with a plot, and the same tables in Markdown. It only reads a `BenchmarkResult`."""

from __future__ import annotations

from tinymusician.html_report import html_note, html_picture, html_table, page
from tinymusician.markdown import markdown_table
from tinymusician.plots import COLOURS, png, pyplot
from tinymusician.understand.benchmark import BenchmarkResult, Score, SystemScore

_NOTE = (
    "The score is the share of questions whose right option has the most probable text; intervals are at 95 % over "
    "tunes. Controls get no audio that helps: with hard questions, each must be at chance, within its 99 % interval."
)


def html_report(result: BenchmarkResult, title: str) -> str:
    """The page."""
    sections = [
        ("Scores", html_note(f"{_about(result)} {_NOTE}") + html_table(*overview(result))),
        (
            "By attribute",
            html_picture(plot_attributes(result), "scores by attribute") + html_table(*attributes(result)),
        ),
        ("Answers", html_table(*answers(result))),
        *([("Linear probes of the encoder", html_table(*probes(result)))] if result.probes else []),
        *((_title(other), html_note(_about(other)) + html_table(*overview(other))) for other in result.others),
    ]
    return page(f"{title}: benchmark {result.benchmark}", sections)


def markdown_report(result: BenchmarkResult) -> str:
    """The tables."""
    tables = (overview(result), attributes(result), answers(result))
    text = [markdown_table(*table) for table in tables]
    if result.probes:
        text += ["## Linear probes of the encoder", markdown_table(*probes(result))]
    for other in result.others:
        text += [f"## {_title(other)}", _about(other), markdown_table(*overview(other))]
    return "\n\n".join(text) + "\n"


def _about(result: BenchmarkResult) -> str:
    return f"{result.model.overall.questions} questions about {result.clips} clips of {result.tunes} tunes."


def _title(result: BenchmarkResult) -> str:
    return f"Questions of the kind {result.benchmark}"


Rows = tuple[tuple[str, ...], list[tuple[object, ...]]]


def overview(result: BenchmarkResult) -> Rows:
    """The model, its bundle and the controls: score, chance, and whether a control's interval contains chance."""
    rows: list[tuple[object, ...]] = []
    for system in _systems(result):
        is_control = system in result.controls
        verdict = {True: "yes", False: "NO", None: "no interval"}[system.overall.contains_chance] if is_control else ""
        rows.append(
            (
                system.name,
                system.overall.interval.as_share(),
                f"{system.overall.chance:.3f}",
                verdict,
                "" if system.circular is None else system.circular.interval.as_share(),
                _share(system.groups),
            )
        )
    return (
        "system",
        "score",
        "chance",
        "99 % interval contains chance",
        "right in all rotations",
        "groups all right",
    ), rows


def attributes(result: BenchmarkResult) -> Rows:
    """By attribute: the model's score, that of the clips after the codec, chance, and the best control."""
    rows: list[tuple[object, ...]] = []
    for name, score in result.model.attributes.items():
        best = max(result.controls, key=lambda control: control.attributes[name].interval.value)
        shown = f"{best.attributes[name].interval.value:.3f} ({best.name})"
        reconstructed = (
            "" if result.reconstructed is None else result.reconstructed.attributes[name].interval.as_share()
        )
        cells = name.replace("_", " "), score.questions, score.interval.as_share(), reconstructed
        rows.append((*cells, f"{score.chance:.3f}", shown))
    return ("attribute", "questions", "score", "after the codec", "chance", "best control"), rows


def answers(result: BenchmarkResult) -> Rows:
    """How every system answers: letters, "cannot tell", and what the parsers read in generated text."""
    rows: list[tuple[object, ...]] = []
    for system in _systems(result):
        total = sum(system.letters.values())
        letters = ", ".join(f"{letter} {count / total:.2f}" for letter, count in system.letters.items())
        parsers = [
            "" if parsed is None else f"{parsed:.3f}, right {right:.3f}"
            for parsed, right in (
                (system.official_parsed, system.official_accuracy),
                (system.strict_parsed, system.strict_accuracy),
            )
        ]
        rows.append((system.name, letters, _share(system.cannot_tell), *parsers, _share(system.held_out_phrasing)))
    names = ("system", "letters", "cannot tell", "parsed by MuChoMusic's parser", "by the strict parser")
    return (*names, "score of new phrasings"), rows


def probes(result: BenchmarkResult) -> Rows:
    """Linear probes of the encoder's mean vectors before and after its training, by attribute."""
    names = tuple(result.probes[0].accuracies) if result.probes else ()
    rows: list[tuple[object, ...]] = [
        (each.encoder, *(f"{each.accuracies[name]:.3f}" for name in names)) for each in result.probes
    ]
    return ("encoder", *names), rows


def plot_attributes(result: BenchmarkResult) -> bytes:
    """A PNG of the model's score of every attribute with its interval, and chance."""
    scores = result.model.attributes
    figure, axis = pyplot().subplots(figsize=(9, 0.42 * len(scores) + 1.2), layout="constrained")
    for row, score in enumerate(scores.values()):
        axis.barh(row, score.interval.value, color=COLOURS[0], height=0.6)
        axis.plot([score.chance] * 2, [row - 0.4, row + 0.4], color=COLOURS[1])
        low, high = _edges(score)
        axis.plot([low, high], [row, row], color="black", linewidth=1.5)
    axis.set_yticks(range(len(scores)), [name.replace("_", " ") for name in scores])
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("score with its 95 % interval; chance is the upright line")
    axis.grid(alpha=0.3, axis="x")
    return png(figure)


def _systems(result: BenchmarkResult) -> list[SystemScore]:
    more = [system for system in (result.bundle, result.reconstructed) if system is not None]
    return [result.model, *more, *result.controls]


def _edges(score: Score) -> tuple[float, float]:
    value, low, high = score.interval.value, score.interval.low, score.interval.high
    return (value, value) if low is None or high is None else (low, high)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
