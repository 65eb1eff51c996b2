"""The benchmark of multiple choice: a model's score with every control that it must be compared with.

The score is the share of questions whose right option has the most probable text. Intervals are over tunes, not over
questions. Controls: no audio, noise, the audio of another tune, the answer that was most frequent in training, and a
model of the same size that was trained without audio. A model that uses the audio is far above all of them, and
all of them are at chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tinymusician.config_model import Document
from tinymusician.errors import DataError
from tinymusician.evaluate.bootstrap import Interval, cluster_interval
from tinymusician.runtime.answers import Floats, OptionProbabilities
from tinymusician.runtime.prompts import LETTERS
from tinymusician.understand.answering import Answerer, select_rows
from tinymusician.understand.questions import Question, official_choice, strict_choice

CONTROLS = ("no audio", "silence", "noise", "another tune's audio", "most frequent answer", "text-only model")
"""The names of all controls."""
CONTROL_LEVEL = 0.99
"""The level of the interval in which chance must be, for a control."""
Bools = npt.NDArray[np.bool_]


class Score(Document):
    """The score on some questions; `chance` is that of guessing, `interval` at 95 %, `control_interval` at 99 %."""

    questions: int
    chance: float
    interval: Interval
    control_interval: Interval

    @property
    def contains_chance(self) -> bool | None:
        """Whether chance is in the 99 % interval; None without one."""
        low, high = self.control_interval.low, self.control_interval.high
        return None if low is None or high is None else low <= self.chance <= high


class SystemScore(Document):
    """A model or a control. `circular` is the score of being right in all rotations of the options.

    `groups` is the share of groups (one text, one list of options, a clip for each) of which all questions are right.
    `letters` counts the chosen options by place. `cannot_tell` is the share of questions where that answer is more
    probable than all options together. The parsers' shares and scores are of generated answers.
    """

    name: str
    overall: Score
    attributes: dict[str, Score]
    letters: dict[str, int]
    groups: float | None = None
    cannot_tell: float | None = None
    circular: Score | None = None
    official_parsed: float | None = None
    official_accuracy: float | None = None
    strict_parsed: float | None = None
    strict_accuracy: float | None = None
    held_out_phrasing: float | None = None


class EncoderProbe(Document):
    """The accuracy of linear probes of an encoder's mean vectors on test clips, by attribute."""

    encoder: str
    accuracies: dict[str, float]


class BenchmarkResult(Document):
    """All scores on one set of questions, which `digest` identifies; `version` is that of the rules that made them.

    `reconstructed` is of the clips after a codec. `others` are the results on other sets of questions. `probes` are of
    the most frequent class, and of the encoder before and after its training.
    """

    benchmark: str
    version: int
    digest: str
    clips: int
    tunes: int
    model: SystemScore
    controls: tuple[SystemScore, ...]
    bundle: SystemScore | None = None
    reconstructed: SystemScore | None = None
    others: tuple[BenchmarkResult, ...] = ()
    probes: tuple[EncoderProbe, ...] = ()


def score_choices(name: str, questions: Sequence[Question], choices: Sequence[int]) -> SystemScore:
    """The score of chosen options."""
    right = np.array([q.options[choice] == q.answer for q, choice in zip(questions, choices, strict=True)])
    by_attribute: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        by_attribute.setdefault(question.attribute, []).append(index)
    letters = Counter(LETTERS[choice] for choice in choices)
    groups: dict[int, bool] = {}
    for question, is_one in zip(questions, right.tolist(), strict=True):
        if question.group >= 0:
            groups[question.group] = groups.get(question.group, True) and is_one
    return SystemScore(
        name=name,
        overall=_score(questions, right),
        attributes={
            attribute: _score([questions[index] for index in rows], right[rows])
            for attribute, rows in by_attribute.items()
        },
        letters={letter: letters[letter] for letter in LETTERS if letters[letter]},
        groups=sum(groups.values()) / len(groups) if groups else None,
    )


def score_probabilities(
    name: str, questions: Sequence[Question], probabilities: Sequence[OptionProbabilities]
) -> SystemScore:
    """The score of the most probable options."""
    score = score_choices(name, questions, [each.choice for each in probabilities])
    unable = float(np.mean([each.cannot_tell > 0.5 for each in probabilities]))
    return score.model_copy(update={"cannot_tell": unable})


def score_model(
    name: str,
    questions: Sequence[Question],
    answerer: Answerer,
    features: Floats | None,
    held_out_texts: frozenset[str] = frozenset(),
) -> SystemScore:
    """The score of a model with all rotations and with generated answers; `features` are those of each question."""
    first = answerer.probabilities(features, questions)
    score = score_probabilities(name, questions, first)
    right = is_right(questions, first)
    generated = answerer.generate(features, [question.prompt for question in questions])
    is_held_out = np.array([question.text in held_out_texts for question in questions])
    return score.model_copy(
        update={
            "circular": score_rotations(questions, answerer, features, first),
            **_parsed("official", official_choice, questions, generated),
            **_parsed("strict", strict_choice, questions, generated),
            "held_out_phrasing": float(right[is_held_out].mean()) if is_held_out.any() else None,
        }
    )


def score_rotations(
    questions: Sequence[Question],
    answerer: Answerer,
    features: Floats | None,
    first: Sequence[OptionProbabilities],
) -> Score:
    """The score if only questions count that are right in all rotations of their options.

    `first` are the probabilities of the order that the questions have.
    """
    in_all = is_right(questions, first)
    for by in range(1, max(len(question.options) for question in questions)):
        rows = [index for index, question in enumerate(questions) if by < len(question.options)]
        rotated = [questions[index].rotated(by) for index in rows]
        in_all[rows] &= is_right(rotated, answerer.probabilities(select_rows(features, rows), rotated))
    return _score(questions, in_all)


def majority_choices(questions: Sequence[Question], training: Sequence[Question]) -> list[int]:
    """For each question, the option that was the answer most often in training, for its attribute."""
    counts = Counter((question.attribute, question.answer) for question in training)
    return [
        int(np.argmax([counts[question.attribute, option] for option in question.options])) for question in questions
    ]


def shuffle_options(questions: Sequence[Question], seed: int) -> list[Question]:
    """The questions, each with its options in an order of its own.

    Within a group the options have one order, so a control without audio scores exactly chance by construction.
    Independent orders reveal a preference for letters.
    """
    rng = np.random.default_rng(seed)
    return [
        question.model_copy(update={"options": tuple(rng.permutation(question.options).tolist())})
        for question in questions
    ]


def mismatched_clips(questions: Sequence[Question], seed: int) -> list[int]:
    """For each question, the clip of a random other question, about another tune.

    Raises:
        DataError: all questions are about one tune.
    """
    tunes = np.array([question.tune for question in questions])
    if len(set(tunes)) == 1:
        raise DataError(f"benchmark: all questions are about the tune {str(tunes[0])!r}; at least two tunes are needed")
    rng = np.random.default_rng(seed)
    return [questions[int(rng.choice(np.flatnonzero(tunes != tune)))].clip for tune in tunes]


def _score(questions: Sequence[Question], right: Bools) -> Score:
    tunes = [question.tune for question in questions]
    return Score(
        questions=len(questions),
        chance=float(np.mean([1 / len(question.options) for question in questions])),
        interval=cluster_interval(right, tunes),
        control_interval=cluster_interval(right, tunes, CONTROL_LEVEL),
    )


def is_right(questions: Sequence[Question], probabilities: Sequence[OptionProbabilities]) -> Bools:
    """Whether the most probable option of each question is its answer."""
    pairs = zip(questions, probabilities, strict=True)
    return np.array([question.options[each.choice] == question.answer for question, each in pairs])


def _parsed(
    name: str,
    parser: Callable[[str, Sequence[str]], int | None],
    questions: Sequence[Question],
    generated: Sequence[str],
) -> Mapping[str, float]:
    choices = [parser(text, question.options) for question, text in zip(questions, generated, strict=True)]
    right = [
        choice is not None and choice < len(question.options) and question.options[choice] == question.answer
        for question, choice in zip(questions, choices, strict=True)
    ]
    parsed = [choice is not None for choice in choices]
    return {f"{name}_parsed": float(np.mean(parsed)), f"{name}_accuracy": float(np.mean(right))}
