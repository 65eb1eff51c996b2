"""Prompt files: the packaged ones are valid; an error is one line with file and line number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinymusician.data.prompts import PACKAGED, load_prompts, texts_of
from tinymusician.errors import DataError

GOOD = {"text": "a", "tempo": "slow", "time": "4/4", "genre": "g", "instrumentation": "i", "emotion": "e"}


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_prompts(name: str) -> None:
    prompts = load_prompts(name)
    assert [len(texts_of(prompts, split)) for split in ("train", "validation", "test")] == [160, 20, 20]
    assert len({prompt.text for prompt in prompts}) == 200


def test_general_prompts_match_their_attributes() -> None:
    for prompt in load_prompts("general"):
        text = prompt.text.lower()
        assert prompt.genre.lower() in text
        assert prompt.instrumentation.lower() in text
        assert prompt.emotion.lower() in text
        assert prompt.tempo.split(", ")[1].removesuffix(" bpm") in text
        assert prompt.time in text


def test_band_prompts_use_the_vocabulary() -> None:
    from tinymusician.house_band.attributes import INSTRUMENTS, TEMPI

    for prompt in load_prompts("band"):
        assert prompt.instrumentation.removeprefix("solo ") in INSTRUMENTS
        assert prompt.tempo.split(",")[0] in TEMPI


def test_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{**GOOD, "text": split, "split": split} for split in ("train", "validation", "test")]
    assert len(load_prompts(write(path, *rows))) == 3
    cases: list[tuple[list[object], str]] = [
        ([], "the file is empty"),
        (rows[:2], "no prompt has split 'test'"),
        ([*rows, rows[0]], "'train' stands there twice"),
        ([{**rows[0], "text": " "}, *rows[1:]], r"prompts\.jsonl:1: text"),
        ([rows[0], {**rows[1], "mood": "x"}, rows[2]], r"prompts\.jsonl:2: mood"),
        ([rows[0], {**rows[1], "split": "dev"}, rows[2]], r"prompts\.jsonl:2: split"),
    ]
    for content, message in cases:
        with pytest.raises(DataError, match=message):
            load_prompts(write(path, *content))
    path.write_text("{")
    with pytest.raises(DataError, match=r"prompts\.jsonl:1: not JSON"):
        load_prompts(str(path))
    with pytest.raises(DataError, match=r"No such file.*packaged are general, band"):
        load_prompts(str(tmp_path / "none"))
