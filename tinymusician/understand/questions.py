"""Questions about clips: their formats, the prompts a model reads, the answers it is to write, and parsers of answers.

The formats are TinyMU's (arXiv 2604.15849): multiple choice, yes or no, open, caption. Files are JSON lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from tinymusician.config_model import Document
from tinymusician.runtime.prompts import ANSWER_PREFIX, LETTERS, MAX_LETTERS, build_prompt, option_text

QuestionFormat = Literal["choice", "yes_no", "open", "caption"]


class Question(Document):
    """A question about the clip with number `clip` of its split. `value` is the clip's own; a caption has none.

    For yes or no about an attribute that follows from a finer one, it is that one's value: the key for the mode.

    `tune` identifies the clip's family of tunes. The questions of a `group` share text and options; each option is the
    answer to one of them.
    """

    format: QuestionFormat
    attribute: str
    clip: int = Field(ge=0)
    tune: str
    group: int = -1
    text: str
    options: tuple[str, ...] = ()
    answer: str
    value: str = ""

    @model_validator(mode="after")
    def _answer_is_an_option(self) -> Self:
        if self.format == "choice" and self.answer not in self.options:
            raise ValueError(f"answer {self.answer!r}: not among the options {list(self.options)}")
        return self

    @property
    def prompt(self) -> str:
        """What the model reads before it answers; more options than there are letters are not listed."""
        return build_prompt(self.text, self.options if len(self.options) <= MAX_LETTERS else ())

    @property
    def stated_prompt(self) -> str:
        """The prompt after the clip's value in words, from which a language model can answer without audio."""
        return f"{self.attribute.replace('_', ' ')}: {self.value}\n{self.prompt}"

    @property
    def target(self) -> str:
        """What the model is to write: the text of an option without its letter; the value in the clip before yes or no.

        A small model knows the value before it can look up the letter of it, or compare it with the question.
        """
        return f"{self.value}, so {self.answer}" if self.format == "yes_no" else self.answer

    def rotated(self, by: int) -> Question:
        """The question with its options moved `by` rows to the front."""
        moved = self.options[by:] + self.options[:by]
        return self.model_copy(update={"options": moved})


def official_choice(output: str, options: Sequence[str]) -> int | None:
    """The option that MuChoMusic's parser reads in a model's output (mulab-mir/muchomusic, scoring); None without one.

    After the lead-in, exactly one distinct capital from A to D counts, wherever it stands; otherwise the first option
    whose text occurs. A capital "A" at the start of a sentence is therefore read as option (A).
    """
    output = output.split(ANSWER_PREFIX)[-1].strip()
    letters = {"A", "B", "C", "D"}.intersection(output)
    if len(letters) == 1:
        return LETTERS.index(letters.pop())
    lower = output.lower()
    return next((index for index, option in enumerate(options) if option.lower().strip() in lower), None)


def strict_choice(output: str, options: Sequence[str]) -> int | None:
    """The option whose text an output is, `flute` or `(B) flute`, with nothing else; or None."""
    texts = list(options) + [option_text(options, index) for index in range(min(len(options), MAX_LETTERS))]
    return texts.index(answer) % len(options) if (answer := output.strip()) in texts else None


def write_questions(path: Path, questions: Iterable[Question]) -> str:
    """Write questions as JSON lines; returns the SHA-256 of the file."""
    content = _lines(questions)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def questions_digest(questions: Iterable[Question]) -> str:
    """The SHA-256 of the file that `write_questions` writes."""
    return hashlib.sha256(_lines(questions)).hexdigest()


def _lines(questions: Iterable[Question]) -> bytes:
    return "".join(f"{question.model_dump_json()}\n" for question in questions).encode()


class ClipRows(NamedTuple):
    """The clips of some questions in ascending order, each once, and for every question the row of its clip."""

    clips: list[int]
    rows: list[int]


def clip_rows(questions: Sequence[Question]) -> ClipRows:
    """The clips that questions are about."""
    clips, rows = np.unique([question.clip for question in questions], return_inverse=True)
    return ClipRows(clips.tolist(), rows.tolist())
