"""The benchmark's report: its tables say what the result says, and a control above chance stands out."""

from __future__ import annotations

import numpy as np

from tests.unit.test_answers import choice
from tinymusician.understand.benchmark import BenchmarkResult, EncoderProbe, score_choices
from tinymusician.understand.questions import Question
from tinymusician.understand.report import answers, attributes, html_report, markdown_report, overview, probes

QUESTIONS: list[Question] = [choice(clip) for clip in range(200)]
RIGHT = [question.options.index(question.answer) for question in QUESTIONS]
RECONSTRUCTED = score_choices(
    "codec", QUESTIONS, [choice if row % 2 else 3 - choice for row, choice in enumerate(RIGHT)]
)
GUESSES = np.random.default_rng(0).integers(0, 4, 200).tolist()


def result() -> BenchmarkResult:
    model = score_choices("band-mu", QUESTIONS, RIGHT).model_copy(
        update={
            "circular": score_choices("all", QUESTIONS, RIGHT[:180] + [3 - choice for choice in RIGHT[180:]]).overall,
            "official_parsed": 1.0,
            "official_accuracy": 0.95,
            "cannot_tell": 0.01,
        }
    )
    controls = (score_choices("no audio", QUESTIONS, GUESSES), score_choices("leaky", QUESTIONS, RIGHT))
    return BenchmarkResult(
        benchmark="hard",
        version=5,
        digest="0" * 64,
        clips=200,
        tunes=200,
        model=model,
        controls=controls,
        reconstructed=RECONSTRUCTED,
        probes=(EncoderProbe(encoder="random weights", accuracies={"colour": 0.25, "size": 0.5}),),
    )


def test_overview_marks_controls_that_are_not_at_chance() -> None:
    _, rows = overview(result())
    assert [(row[0], row[3]) for row in rows] == [("band-mu", ""), ("codec", ""), ("no audio", "yes"), ("leaky", "NO")]
    assert rows[0][1] == "1.000 [0.982, 1.000]"
    assert str(rows[0][4]).startswith("0.900 [")


def test_attributes_name_the_best_control() -> None:
    _, rows = attributes(result())
    ((*about, reconstructed, chance, control),) = rows
    assert (about, chance, control) == (["colour", 200, "1.000 [0.982, 1.000]"], "0.250", "1.000 (leaky)")
    assert str(reconstructed).startswith("0.500 [")


def test_answers_show_letters_and_parsers() -> None:
    _, rows = answers(result())
    assert rows[0] == ("band-mu", "A 0.25, B 0.25, C 0.25, D 0.25", "0.010", "1.000, right 0.950", "", "")


def test_probes_have_an_encoder_in_each_row() -> None:
    assert probes(result()) == (("encoder", "colour", "size"), [("random weights", "0.250", "0.500")])
    assert "| random weights | 0.250 | 0.500 |" in markdown_report(result())


def test_page_and_markdown_have_all_systems() -> None:
    html, markdown = html_report(result(), "band-mu"), markdown_report(result())
    for name in ("band-mu", "no audio", "leaky", "colour"):
        assert name in html
        assert name in markdown
    assert "data:image/png;base64," in html
