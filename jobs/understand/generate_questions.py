"""The stage in which the questions of all splits are written; a run that is resumed must have the same."""

from __future__ import annotations

from jobs.understand.data import UnderstandData
from jobs.worker.context import WorkerContext
from tinymusician.config_model import Document
from tinymusician.errors import RunError
from tinymusician.house_band.skill_questions import VERSION
from tinymusician.understand.questions import questions_digest

_KIND, _SUBJECT = "questions", "all splits"


class QuestionSets(Document):
    """What a run trains and is scored on: the version of the rules, and the SHA-256 of every split's questions."""

    version: int
    train: str
    validation: str
    test: str


def generate_questions(context: WorkerContext, data: UnderstandData) -> None:
    """Write the questions, and record them with the run.

    Raises:
        RunError: the run began with other questions, by other rules of another version of the code.
    """
    if context.rank:
        return
    context.run.report_progress("generate-questions", 0, 1)
    digests = {name: questions_digest(data.questions(name)) for name in ("train", "validation", "test")}
    sets = QuestionSets(version=VERSION, **digests)
    before = context.run.measurement(_KIND, _SUBJECT, QuestionSets)
    if before is None:
        context.run.write_measurement(_KIND, _SUBJECT, sets)
    elif before != sets:
        raise RunError(
            f"run {context.run.id!r}: began with questions of version {before.version}, and this code writes others "
            f"(version {sets.version}); start a new run, or continue with the code that began it"
        )
