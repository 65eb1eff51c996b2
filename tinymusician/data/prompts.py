"""Prompt files: plain text, a CSV table with captions, or JSON lines with `text`, optionally a split and attributes.

A text file has a prompt per line; of a table, such as MusicCaps', the column `caption` is read.
Two are packaged, 200 prompts each, split 160 / 20 / 20: `general` for MusicGen, `band` in the house band's vocabulary.

A file without splits is split by a rule: its prompts are ordered by the SHA-256 of their texts; the first tenth is for
validation, the second for test, at least one prompt each, and the rest for training.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from importlib import resources
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinymusician.data.splits import SPLITS, Split
from tinymusician.errors import DataError
from tinymusician.inputs import input_path

PACKAGED = ("general", "band")
Text = Annotated[str, Field(min_length=1, pattern=r"\S")]


class Prompt(BaseModel):
    """A text prompt and its split; the packaged ones also have the attributes of the paper's prompts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Text
    tempo: Text | None = None
    time: Text | None = None
    genre: Text | None = None
    instrumentation: Text | None = None
    emotion: Text | None = None
    split: Split | None = None


def load_prompts(name: str) -> list[Prompt]:
    """Read and validate a packaged prompt file, one at a path, or an artifact of one file.

    Raises:
        DataError: the file is missing, empty or malformed, contains a text twice, or has an empty split.
    """
    ending = "" if name in PACKAGED else input_path(name).suffix.lower()
    if ending == ".csv":
        prompts = _read_table(name)
    else:
        parse = _parse_text if ending == ".txt" else _parse_json
        prompts = [parse(line, f"{name}:{number}") for number, line in enumerate(_lines(name), 1) if line.strip()]
    if not prompts:
        raise DataError(f"prompts {name}: the file is empty; a prompt per line is needed")
    if repeated := [text for text, count in Counter(prompt.text for prompt in prompts).items() if count > 1]:
        raise DataError(f"prompts {name}: {repeated[0]!r} occurs twice, so two splits could share it")
    without = [prompt for prompt in prompts if prompt.split is None]
    if without and len(without) < len(prompts):
        raise DataError(f"prompts {name}: {without[0].text!r} has no split, and others have one; all or none need it")
    prompts = _assign_splits(prompts) if without else prompts
    for split in SPLITS:
        if not any(prompt.split == split for prompt in prompts):
            raise DataError(f"prompts {name}: no prompt has split {split!r}; each of {', '.join(SPLITS)} needs one")
    return prompts


def _assign_splits(prompts: list[Prompt]) -> list[Prompt]:
    """The same prompts in the same order, each with a split by the rule of this module."""
    ranked = sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.text.encode()).digest())
    tenth = max(1, len(prompts) // 10)
    splits: dict[str, Split] = {prompt.text: "train" for prompt in ranked}
    splits |= {prompt.text: "validation" for prompt in ranked[:tenth]}
    splits |= {prompt.text: "test" for prompt in ranked[tenth : 2 * tenth]}
    return [prompt.model_copy(update={"split": splits[prompt.text]}) for prompt in prompts]


def texts_of(prompts: list[Prompt], split: Split) -> list[str]:
    """The texts of one split, in the file's order."""
    return [prompt.text for prompt in prompts if prompt.split == split]


def _lines(name: str) -> list[str]:
    try:
        if name in PACKAGED:
            return (resources.files("tinymusician.data") / "prompts" / f"{name}.jsonl").read_text("utf-8").split("\n")
        return input_path(name).read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DataError(f"prompts {name}: {reason}; packaged are {', '.join(PACKAGED)}, else give a path") from error


def _read_table(name: str) -> list[Prompt]:
    try:
        rows = list(csv.DictReader(io.StringIO("\n".join(_lines(name)), newline="")))
    except csv.Error as error:
        raise DataError(f"prompts {name}: not a CSV table ({error})") from error
    if longer := [number for number, row in enumerate(rows, 1) if None in row]:
        raise DataError(
            f"prompts {name}: row {longer[0]} has more values than the table has columns; a caption with a comma needs "
            f"quotation marks"
        )
    if rows and "caption" not in rows[0]:
        raise DataError(f"prompts {name}: has no column `caption`, but {', '.join(rows[0])}")
    if empty := [number for number, row in enumerate(rows, 1) if not (row["caption"] or "").strip()]:
        raise DataError(f"prompts {name}: {len(empty)} captions are empty, first of all that of row {empty[0]}")
    return [Prompt(text=row["caption"].strip()) for row in rows]


def _parse_text(line: str, _where: str) -> Prompt:
    return Prompt(text=line.strip())


def _parse_json(line: str, where: str) -> Prompt:
    try:
        content: Any = json.loads(line)
        return Prompt.model_validate(content)
    except json.JSONDecodeError as error:
        raise DataError(f"prompts {where}: not JSON ({error.msg}); a file of plain lines ends in .txt") from error
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(key) for key in problem["loc"]) or "line"
        raise DataError(f"prompts {where}: {field}: {problem['msg'][0].lower()}{problem['msg'][1:]}") from None
