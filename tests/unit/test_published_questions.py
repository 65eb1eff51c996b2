"""Published question files: their layouts, RUListening's votes, and scores against counts by hand."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from jobs.cli.benchmark import find_audio, other_tracks
from jobs.cli.main import app
from tinymusician.errors import DataError, RequestError
from tinymusician.understand.published import (
    PublishedQuestion,
    Reply,
    load_published,
    score_outputs,
    score_published,
    vote_chance,
)

CSV = (
    "question,correct_answer,distractor_1_answer,distractor_2_answer,distractor_3_answer,dataset,"
    "dataset_identifier,genre,music_knowledge,music_reasoning\n"
    "What plays?,piano,organ,calm,march,sdd,1234.json,folk,\"['instrumentation']\",\n"
    "What mood?,calm,angry,piano,drums,musiccaps,ab_c-D_7.json,,,\"['mood & expression']\"\n"
)
JSON = [
    {
        "id": 7,
        "prompt": "Question: Example?\n Options: (A) x \n The correct answer is: (A) x \n "
        "Question: What plays?\n Options: (A) organ (B) piano (C) march (D) calm \n The correct answer is: ",
        "answers": ["organ", "piano", "march", "calm"],
        "answer_orders": [1, 0, 3, 2],
        "dataset": "sdd",
        "reasoning": [],
        "knowledge": ["instrumentation"],
        "audio_path": "data/sdd/audio/07/7.2min.mp3",
        "model_output": output,
    }
    for output in ("(B) piano", "The correct answer is: A", "a calm piano")
]


def always_right(question: PublishedQuestion, options: tuple[str, ...]) -> Reply:
    index = options.index(question.correct)
    return Reply(index, f"({'ABCD'[index]}) {question.correct}")


def test_muchomusic_table(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(CSV)
    layout, (first, second) = load_published(tmp_path / "m.csv")
    assert layout == "muchomusic-csv"
    assert (first.id, first.correct, first.distractors) == ("1234", "piano", ("organ", "calm", "march"))
    assert (first.knowledge, second.id, second.reasoning) == (("instrumentation",), "ab_c-D", ("mood & expression",))
    score = score_published(layout, [first, second], always_right, seed=0)
    assert (score.accuracy.value, score.official_accuracy, score.strict_parsed) == (1.0, 1.0, 1.0)  # type: ignore[union-attr]
    assert score.by_category["instrumentation"].value == 1.0


def test_muchomusic_outputs(tmp_path: Path) -> None:
    """Right by letter; wrong by letter; "a calm piano" has no capital letter, and `piano` is the first option in it."""
    (tmp_path / "m.json").write_text(json.dumps(JSON))
    layout, questions = load_published(tmp_path / "m.json")
    assert (questions[0].text, questions[0].correct, questions[0].id) == ("What plays?", "piano", "7.2min")
    score = score_outputs(layout, questions)
    assert (score.official_accuracy, score.official_parsed) == (pytest.approx(2 / 3), 1.0)
    assert (score.strict_accuracy, score.strict_parsed) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert score.accuracy is None
    assert score.by_category["instrumentation"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"distractors": []}, "1 answers; 3 to 7 are allowed"),
        ({"distractors": [*"abcdefghij"]}, "11 answers; 3 to 7 are allowed"),
        ({"distractors": [1, 2, 3, 4]}, "must be strings"),
        ({"distractors": ["a", "b", None, "d"]}, "must be strings"),
        ({"distractors": ["a", "b", "yes", "d"]}, "two answers are equal"),
        ({"question": " "}, "the text or an answer is empty"),
        ({"question": "?" * 2001}, "2001 characters; at most 2000 are allowed"),
    ],
)
def test_questions_that_cannot_be_scored_are_named(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    entry = {"question": "What?", "correct_answer": "yes", "distractors": ["a", "b", "c", "d"]}
    (tmp_path / "r.json").write_text(json.dumps({"good": entry, "bad": {**entry, **change}}))
    with pytest.raises(DataError, match=rf"question 2 \('bad'\): .*{problem}"):
        load_published(tmp_path / "r.json")


@pytest.mark.parametrize("content", ["[" * 100_000, json.dumps([{**JSON[0], "answer_orders": [1, 1, 3, 2, 0]}])])
def test_files_in_no_layout(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(DataError, match=r"none of the layouts|answers|equal"):
        load_published(tmp_path / "m.json")


def test_chance_of_a_vote() -> None:
    """With two distractors, two sets of two: right with two votes of four, and once where the votes are equal.

    With four, as random choices are.
    """
    assert vote_chance(2) == 1 / 4 + 1 / 4
    rng, right = random.Random(0), 0
    for _ in range(20_000):
        votes = [rng.choice(["yes", *(word for word in "abcd" if word != out)]) for out in "abcd"]
        right += max(dict.fromkeys(votes), key=votes.count) == "yes"
    assert vote_chance(4) == pytest.approx(right / 20_000, abs=0.01)


def test_intervals_resample_tracks() -> None:
    """Ten questions about each of 16 tracks, all right or all wrong: the standard error is that of the tracks."""
    questions = [
        PublishedQuestion(str(number), f"track {number // 10}", "?", "yes", ("a", "b", "c"), ("rhythm",))
        for number in range(160)
    ]

    def knows_half(question: PublishedQuestion, options: tuple[str, ...]) -> Reply:
        correct = options.index("yes")
        return Reply(correct if int(question.id) < 80 else (correct + 1) % 4, "")

    score = score_published("muchomusic-csv", questions, knows_half, seed=0)
    for interval in (score.accuracy, score.by_category["rhythm"]):
        assert interval is not None
        assert interval.high == pytest.approx(0.5 + 1.96 * 0.5 / 4, abs=0.03)


def test_rul_leaves_one_distractor_out_and_votes(tmp_path: Path) -> None:
    entry = {"question": "What?", "correct_answer": "yes", "distractors": ["a", "b", "c", "d"], "caption": "", "PI": 1}
    (tmp_path / "r.json").write_text(json.dumps({"1": entry}))
    layout, questions = load_published(tmp_path / "r.json")
    seen = []

    def prefers_a(question: PublishedQuestion, options: tuple[str, ...]) -> Reply:
        seen.append(sorted(options))
        choice = options.index("a") if "a" in options else options.index("yes")
        return Reply(choice, "nothing")

    score = score_published(layout, questions, prefers_a, seed=0)
    assert seen == [["b", "c", "d", "yes"], ["a", "c", "d", "yes"], ["a", "b", "d", "yes"], ["a", "b", "c", "yes"]]
    assert score.accuracy.value == 0.25  # type: ignore[union-attr]
    assert score.voted.value == 0.0  # type: ignore[union-attr]
    assert (score.official_parsed, score.chance) == (0.0, 0.25)
    assert score.voted_chance == vote_chance(4)
    assert sum(score.letters.values()) == 4


def test_chance_is_of_each_questions_options() -> None:
    """Random choices among as many options as there are distractors, in every set."""
    rng = np.random.default_rng(0)
    questions = [
        PublishedQuestion(f"{number}/{count}", f"{number}/{count}", "?", "yes", tuple("abcdef"[:count]))
        for count in (2, 3, 6)
        for number in range(2000)
    ]
    score = score_published("rul", questions, lambda _, options: Reply(int(rng.integers(len(options))), ""), seed=0)
    assert score.accuracy is not None
    assert score.voted is not None
    weighted = (1 / 2 * 2 + 1 / 3 * 3 + 1 / 6 * 6) / 11  # sets count, and there are as many as distractors
    assert score.accuracy.value == pytest.approx(weighted, abs=0.01)
    assert score.chance == pytest.approx(weighted)
    assert score.voted.value == pytest.approx(score.voted_chance, abs=0.02)


@pytest.mark.parametrize(
    "content",
    [
        '{"1": {"question": "x", "correct_answer": "a", "distractors": "bcd"}}',
        '{"1": {"question": "x", "correct_answer": "a", "distractors": ["b", "c"], "caption": ["d"]}}',
        '[{"prompt": "Question: x", "answers": "flute", "answer_orders": [0], "id": 1}]',
        "{",
        '[{"prompt": null, "answers": [1], "answer_orders": [0]}]',
        '{"1": {"question": "x"}}',
        "[1]",
        '"text"',
    ],
)
def test_file_in_no_layout_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "q.json").write_text(content)
    with pytest.raises(DataError, match="none of the layouts"):
        load_published(tmp_path / "q.json")


@pytest.mark.parametrize(("name", "content"), [("q.json", "{}"), ("q.csv", CSV.splitlines()[0] + "\n")])
def test_file_without_questions_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="has no questions"):
        load_published(tmp_path / name)


def test_files_of_audio_are_named(tmp_path: Path) -> None:
    def write(name: str, seconds: float = 1.0) -> Path:
        soundfile.write(tmp_path / name, np.zeros(round(1000 * seconds)), 1000, format="WAV")
        return tmp_path / name

    def about(*tracks: str) -> list[PublishedQuestion]:
        return [PublishedQuestion(name, name, "?", "a", ("b",)) for name in tracks]

    one = write("one.wav")
    with pytest.raises(DataError, match="1 of 2 files are missing, such as two"):
        find_audio(tmp_path, about("one", "two"))
    assert find_audio(tmp_path, about("one")) == {"one": one}
    parts = write("[a-b_C]-[30-40].wav"), write("1234.2min.mp3")
    assert find_audio(tmp_path, about("a-b_C", "1234")) == dict(zip(("a-b_C", "1234"), parts, strict=True))
    assert other_tracks({"one": one, "1234": parts[1]}, about("one", "1234")) == {"one": parts[1], "1234": one}
    with pytest.raises(DataError, match="all questions are about one track"):
        other_tracks({"one": one}, about("one"))
    write("two.wav", 0.1)
    with pytest.raises(DataError, match=r"two\.wav: audio: lasts 0\.1 s; 0\.5 to 600 s"):
        find_audio(tmp_path, about("one", "two"))
    with pytest.raises(DataError, match="no such folder"):
        find_audio(tmp_path / "none", about("one"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "one of --audio DIR, --text-only and --noise is needed"),
        (("--text-only", "--noise"), "one of --audio DIR, --text-only and --noise is needed"),
        (("--outputs", "--noise"), "with --outputs, none of"),
        (("--text-only", "--mismatched"), "--mismatched: needs --audio DIR"),
    ],
)
def test_options_that_contradict(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    ended = CliRunner().invoke(app, ["benchmark", str(tmp_path / "q.json"), *words])
    assert ended.exit_code != 0
    assert isinstance(ended.exception, RequestError)
    assert message in str(ended.exception)


def test_controls_of_a_published_file(tmp_path: Path) -> None:
    """The packaged bundle on a question about two clips; progress is reported."""
    entry = {"question": "Which instrument plays?", "correct_answer": "flute"}
    entries = {name: {**entry, "distractors": ["piano", "banjo", "trumpet"], "caption": name} for name in "ab"}
    (tmp_path / "q.json").write_text(json.dumps(entries))
    words = ["benchmark", str(tmp_path / "q.json"), "--noise", "--json"]
    ended = CliRunner().invoke(app, words, catch_exceptions=False)
    score = json.loads(ended.stdout)
    assert (score["questions"], score["chance"], sum(score["letters"].values())) == (2, pytest.approx(1 / 3), 6)
    assert "question 2 of 2" in ended.stderr


@pytest.mark.skipif("TINYMUSICIAN_TEST_DATA" not in os.environ, reason="needs the published file")
def test_published_rul_file_is_read_completely() -> None:
    layout, questions = load_published(Path(os.environ["TINYMUSICIAN_TEST_DATA"]) / "RUL-MuchoMusic.json")
    assert (layout, len(questions)) == ("rul", 1187)
    assert all(len(question.distractors) == 4 for question in questions)
