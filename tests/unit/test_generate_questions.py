"""The questions of a run are recorded, and a run that is resumed has the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import pytest

from jobs.understand.data import UnderstandData
from jobs.understand.generate_questions import QuestionSets, generate_questions
from jobs.worker.context import WorkerContext
from tests.unit.test_answers import choice
from tinymusician.artifacts.store import LocalStore
from tinymusician.errors import RunError
from tinymusician.house_band.skill_questions import VERSION
from tinymusician.understand.questions import Question, write_questions


class _Data:
    def __init__(self, first: int) -> None:
        self._first = first

    def questions(self, split: str) -> list[Question]:
        return [choice(clip) for clip in range(self._first, self._first + {"train": 8, "validation": 4}.get(split, 6))]


def data(first: int) -> UnderstandData:
    return cast(UnderstandData, _Data(first))


def test_a_resumed_run_has_the_same_questions(tmp_path: Path) -> None:
    context = WorkerContext(LocalStore(tmp_path / "store").url, "u", 0, 2, "cpu")
    generate_questions(dataclasses.replace(context, rank=1), data(100))
    generate_questions(context, data(0))
    generate_questions(context, data(0))
    sets = context.run.measurement("questions", "all splits", QuestionSets)
    assert sets is not None
    assert sets.version == VERSION
    assert sets.train == write_questions(tmp_path / "train.jsonl", data(0).questions("train"))
    with pytest.raises(RunError, match=rf"run 'u': began with questions of version {VERSION}, .*; start a new run"):
        generate_questions(context, data(1))
    assert context.run.measurement("questions", "all splits", QuestionSets) == sets
