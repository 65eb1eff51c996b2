"""Prompt files: JSON lines, with the attributes of the paper's prompts.

Two are packaged, 200 prompts each, split 160 / 20 / 20: `general` for MusicGen, `band` in the house band's vocabulary.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinymusician.data.splits import SPLITS, Split
from tinymusician.errors import DataError

PACKAGED = ("general", "band")
Text = Annotated[str, Field(min_length=1, pattern=r"\S")]


class Prompt(BaseModel):
    """A text prompt, and its tempo, time, genre, instrumentation and emotion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Text
    tempo: Text
    time: Text
    genre: Text
    instrumentation: Text
    emotion: Text
    split: Split


def load_prompts(name: str) -> list[Prompt]:
    """Read and validate a packaged prompt file, or one at a path.

    Raises:
        DataError: the file is missing, empty or malformed, contains a text twice, or has an empty split.
    """
    prompts = [_parse(line, f"{name}:{number}") for number, line in enumerate(_lines(name), 1) if line.strip()]
    if not prompts:
        raise DataError(f"prompts {name}: the file is empty; one JSON object a line is needed")
    texts = [prompt.text for prompt in prompts]
    for text in texts:
        if texts.count(text) > 1:
            raise DataError(f"prompts {name}: {text!r} stands there twice, so the splits would share it")
    for split in SPLITS:
        if not any(prompt.split == split for prompt in prompts):
            raise DataError(f"prompts {name}: no prompt has split {split!r}; each of {', '.join(SPLITS)} needs one")
    return prompts


def texts_of(prompts: list[Prompt], split: Split) -> list[str]:
    """The texts of one split, in the file's order."""
    return [prompt.text for prompt in prompts if prompt.split == split]


def _lines(name: str) -> list[str]:
    try:
        if name in PACKAGED:
            return (resources.files("tinymusician.data") / "prompts" / f"{name}.jsonl").read_text("utf-8").splitlines()
        return Path(name).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DataError(f"prompts {name}: {reason}; packaged are {', '.join(PACKAGED)}, else give a path") from error


def _parse(line: str, where: str) -> Prompt:
    try:
        content: Any = json.loads(line)
        return Prompt.model_validate(content)
    except json.JSONDecodeError as error:
        raise DataError(f"prompts {where}: not JSON ({error.msg})") from error
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(key) for key in problem["loc"]) or "line"
        raise DataError(f"prompts {where}: {field}: {problem['msg'][0].lower()}{problem['msg'][1:]}") from None
