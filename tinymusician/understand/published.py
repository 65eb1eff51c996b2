"""Questions in the layouts of published benchmarks, and their scores.

MuChoMusic (ISMIR 2024, arXiv 2408.01337) publishes a CSV table; its prompts and a model's outputs are a JSON list.
RUListening (arXiv 2504.00369) publishes a JSON object with four distractors a question; one distractor is left out in
turn, and the option that is chosen most often counts.
"""

from __future__ import annotations

import ast
import csv
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from tinymusician.config_model import Document
from tinymusician.errors import DataError
from tinymusician.evaluate.bootstrap import Interval, cluster_interval
from tinymusician.json_types import JsonObject
from tinymusician.runtime.prompts import LETTERS, MAX_LETTERS
from tinymusician.understand.questions import official_choice, strict_choice

Layout = Literal["muchomusic-csv", "muchomusic-json", "rul"]
_CSV_COLUMNS = ("question", "correct_answer", "distractor_1_answer", "dataset_identifier")
_MAX_RUL_ANSWERS = 7
_MAX_CHARACTERS = 2000
T = TypeVar("T")


@dataclass(frozen=True)
class PublishedQuestion:
    """A question about a track; `output` is the text of a model that has answered it, with `options` in its order.

    `id` names the audio file. Questions with one `track` are about the same music.
    """

    id: str
    track: str
    text: str
    correct: str
    distractors: tuple[str, ...]
    knowledge: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    output: str | None = None


class Reply(NamedTuple):
    """A model's choice among options by probability, and the text that it writes."""

    choice: int
    text: str


Ask = Callable[[PublishedQuestion, tuple[str, ...]], Reply]
"""Asks a model a question with options."""


class PublishedScore(Document):
    """Scores on published questions: by probability, and by each parser of written answers.

    All count single answers, of which RUListening has four to a question; `voted` counts its questions by the option
    that most of them name, and is right by chance in `voted_chance`. Intervals resample tracks.
    """

    layout: Layout
    questions: int
    chance: float
    accuracy: Interval | None
    voted: Interval | None
    voted_chance: float | None
    official_accuracy: float
    official_parsed: float
    strict_accuracy: float
    strict_parsed: float
    letters: dict[str, int]
    by_category: dict[str, Interval]


def load_published(path: Path) -> tuple[Layout, list[PublishedQuestion]]:
    """Read a file of published questions.

    Raises:
        DataError: it cannot be read, or is in none of the layouts.
    """
    try:
        layout, questions = _read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"questions {path}: cannot be read ({error})") from error
    except (ValueError, LookupError, TypeError, AttributeError, SyntaxError, RecursionError, csv.Error) as error:
        raise DataError(
            f"questions {path}: are in none of the layouts of MuChoMusic (CSV, JSON) and RUListening (JSON); {error!r}"
        ) from error
    if not questions:
        raise DataError(f"questions {path}: has no questions")
    for number, question in enumerate(questions, 1):
        if problem := _problem(question, layout):
            raise DataError(f"questions {path}, question {number} ({question.id!r:.40}): {problem}")
    return layout, questions


def _problem(question: PublishedQuestion, layout: Layout) -> str:
    """What is wrong with a question; empty if nothing is."""
    answers, most = (question.correct, *question.distractors), _MAX_RUL_ANSWERS if layout == "rul" else MAX_LETTERS
    words = (question.text, *answers, *question.knowledge, *question.reasoning, question.output or "")
    if not all(isinstance(word, str) for word in words):
        return "text, answers, categories and output must be strings"
    if not all(word.strip() for word in (question.text, *answers)):
        return "the text or an answer is empty"
    if longest := max((len(word) for word in (question.text, *answers) if len(word) > _MAX_CHARACTERS), default=0):
        return f"{longest} characters; at most {_MAX_CHARACTERS} are allowed"
    if len(set(answers)) < len(answers):
        return "two answers are equal"
    fewest = 3 if layout == "rul" else 2
    return "" if fewest <= len(answers) <= most else f"{len(answers)} answers; {fewest} to {most} are allowed"


def _read(path: Path) -> tuple[Layout, list[PublishedQuestion]]:
    if path.suffix.lower() == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            return "muchomusic-csv", [_from_csv(row, path) for row in csv.DictReader(file)]
    content = json.loads(path.read_text("utf-8"))
    if isinstance(content, dict):
        return "rul", [_from_rul(name, entry) for name, entry in content.items()]
    return "muchomusic-json", [_from_json(entry) for entry in content]


def score_published(layout: Layout, questions: Sequence[PublishedQuestion], ask: Ask, seed: int) -> PublishedScore:
    """Ask all questions, with options in random order, and score the answers."""
    outcomes = [
        _ask_one(layout, question, ask, random.Random(f"{seed}/{number}")) for number, question in enumerate(questions)
    ]
    return _score(layout, questions, outcomes)


def score_outputs(layout: Layout, questions: Sequence[PublishedQuestion]) -> PublishedScore:
    """Score the outputs in a file, which have no probabilities.

    Raises:
        DataError: a question has no output.
    """
    if missing := next((question.id for question in questions if question.output is None), None):
        raise DataError(f"question {missing}: has no model_output; without --outputs, a bundle answers")
    outcomes = [
        _Outcome(None, [], [_parsed(question.output or "", question.options, question.correct)], [])
        for question in questions
    ]
    return _score(layout, questions, outcomes)


class _Parsed(NamedTuple):
    official: bool | None
    strict: bool | None


class _Outcome(NamedTuple):
    """Whether the vote is right, and each choice; what the parsers read, None if nothing; the chosen positions."""

    voted: bool | None
    right: list[bool]
    parsed: list[_Parsed]
    positions: list[int]


def _ask_one(layout: Layout, question: PublishedQuestion, ask: Ask, rng: random.Random) -> _Outcome:
    wrong = question.distractors
    sets = [wrong] if layout != "rul" else [wrong[:out] + wrong[out + 1 :] for out in range(len(wrong))]
    chosen, parsed, positions = [], [], []
    for distractors in sets:
        options = [question.correct, *distractors]
        rng.shuffle(options)
        reply = ask(question, tuple(options))
        chosen.append(options[reply.choice])
        positions.append(reply.choice)
        parsed.append(_parsed(reply.text, tuple(options), question.correct))
    return _Outcome(_vote(chosen) == question.correct, [text == question.correct for text in chosen], parsed, positions)


def _vote(chosen: Sequence[T]) -> T:
    """What most choices name; of equals, what is named first."""
    return Counter(chosen).most_common(1)[0][0]


@cache
def vote_chance(distractors: int) -> float:
    """How often random choices vote for the right option, each among it and all but one of the distractors.

    The right option is in every set, and each distractor in all but one, so it is more than that of one set.
    """
    sets = [[0, *(one for one in range(1, distractors + 1) if one != out)] for out in range(1, distractors + 1)]
    votes = [_vote(chosen) == 0 for chosen in product(*sets)]
    return sum(votes) / len(votes)


def _parsed(text: str, options: tuple[str, ...], correct: str) -> _Parsed:
    read = [parser(text, options) for parser in (official_choice, strict_choice)]
    return _Parsed(*(None if index is None else index < len(options) and options[index] == correct for index in read))


def _score(layout: Layout, questions: Sequence[PublishedQuestion], outcomes: Sequence[_Outcome]) -> PublishedScore:
    parsed = [one for outcome in outcomes for one in outcome.parsed]
    tracks = [question.track for question, outcome in zip(questions, outcomes, strict=True) for _ in outcome.right]
    right = [one for outcome in outcomes for one in outcome.right]
    letters = Counter(LETTERS[place] for outcome in outcomes for place in outcome.positions)
    categories: dict[str, list[tuple[bool, str]]] = {}
    for question, outcome in zip(questions, outcomes, strict=True):
        for category in (*question.knowledge, *question.reasoning):
            is_right = outcome.right or [one.official is True for one in outcome.parsed]
            categories.setdefault(category, []).extend((one, question.track) for one in is_right)
    voted = [bool(outcome.voted) for outcome in outcomes] if layout == "rul" and right else []
    return PublishedScore(
        layout=layout,
        questions=len(questions),
        chance=_chance(layout, questions),
        accuracy=cluster_interval(right, tracks) if right else None,
        voted=cluster_interval(voted, [question.track for question in questions]) if voted else None,
        voted_chance=float(np.mean([vote_chance(len(q.distractors)) for q in questions])) if voted else None,
        official_accuracy=sum(one.official is True for one in parsed) / len(parsed),
        official_parsed=sum(one.official is not None for one in parsed) / len(parsed),
        strict_accuracy=sum(one.strict is True for one in parsed) / len(parsed),
        strict_parsed=sum(one.strict is not None for one in parsed) / len(parsed),
        letters=dict(sorted(letters.items())),
        by_category={name: _interval(rows) for name, rows in sorted(categories.items())},
    )


def _chance(layout: Layout, questions: Sequence[PublishedQuestion]) -> float:
    """The accuracy of random choices; with RUListening's layout, a question has as many sets as distractors."""
    counts = np.array([len(question.distractors) for question in questions])
    return len(counts) / counts.sum() if layout == "rul" else float((1 / (1 + counts)).mean())


def _interval(rows: Sequence[tuple[bool, str]]) -> Interval:
    """Of outcomes and their tracks."""
    return cluster_interval([right for right, _ in rows], [track for _, track in rows])


def _from_csv(row: Mapping[str, str | None], path: Path) -> PublishedQuestion:
    if missing := [name for name in _CSV_COLUMNS if not row.get(name)]:
        raise DataError(f"questions {path}: a row has no {', '.join(missing)}")
    identifier = str(row["dataset_identifier"]).removesuffix(".json")
    if row.get("dataset") == "musiccaps":  # YouTube's id and the clip's number, joined by the last underscore
        identifier = identifier.rpartition("_")[0]
    wrong = [row.get(f"distractor_{number}_answer") for number in (1, 2, 3)]
    return PublishedQuestion(
        identifier,
        identifier,
        str(row["question"]),
        str(row["correct_answer"]),
        tuple(text for text in wrong if text),
        _words(row.get("music_knowledge")),
        _words(row.get("music_reasoning")),
    )


def _from_json(entry: JsonObject) -> PublishedQuestion:
    """An entry of MuChoMusic's list: 0 in `answer_orders` is the place of the right answer."""
    answers, right = _texts(entry["answers"]), entry["answer_orders"].index(0)
    question = entry["prompt"].rpartition("Question: ")[2].partition("\n")[0].strip()
    wrong = answers[:right] + answers[right + 1 :]
    track = Path(entry.get("audio_path") or str(entry["id"])).stem
    return PublishedQuestion(
        track,
        track,
        question,
        answers[right],
        wrong,
        _texts(entry.get("knowledge", ())),
        _texts(entry.get("reasoning", ())),
        answers,
        entry.get("model_output"),
    )


def _from_rul(name: str, entry: JsonObject) -> PublishedQuestion:
    """An entry of RUListening's object, whose caption tells the track."""
    track = entry.get("caption") or name
    if not isinstance(track, str):
        raise TypeError(f"caption {track!r:.40} is no text")
    return PublishedQuestion(name, track, entry["question"], entry["correct_answer"], _texts(entry["distractors"]))


def _texts(value: object) -> tuple[str, ...]:
    """What should be a list of texts; `_problem` looks at each.

    Raises:
        TypeError: it is no list, as a text in its place.
    """
    if not isinstance(value, list | tuple):
        raise TypeError(f"{value!r:.40} is no list")
    return tuple(value)


def _words(cell: str | None) -> tuple[str, ...]:
    """A cell with a list of Python's strings."""
    return _texts(ast.literal_eval(cell)) if cell else ()
