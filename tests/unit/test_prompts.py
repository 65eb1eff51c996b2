"""Prompt files: the packaged ones are valid; an error is one line with file and line number."""

from __future__ import annotations

import hashlib
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
        text, tempo = prompt.text.lower(), str(prompt.tempo).split(", ")[1].removesuffix(" bpm")
        for attribute in (prompt.genre, prompt.instrumentation, prompt.emotion, prompt.time, tempo):
            assert str(attribute).lower() in text


def test_band_prompts_use_the_vocabulary() -> None:
    from tinymusician.house_band.attributes import INSTRUMENTS, TEMPI

    for prompt in load_prompts("band"):
        assert str(prompt.instrumentation).removeprefix("solo ") in INSTRUMENTS
        assert str(prompt.tempo).split(",")[0] in TEMPI


def test_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{**GOOD, "text": split, "split": split} for split in ("train", "validation", "test")]
    assert len(load_prompts(write(path, *rows))) == 3
    cases: list[tuple[list[object], str]] = [
        ([], "the file is empty"),
        (rows[:2], "no prompt has split 'test'"),
        ([*rows, rows[0]], "'train' occurs twice"),
        ([{**rows[0], "text": " "}, *rows[1:]], r"prompts\.jsonl:1: text"),
        ([*rows, {"text": "d"}], "'d' has no split, and others have one"),
        ([{"text": "a"}, {"text": "b"}], "no prompt has split 'train'"),
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


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,caption\n1,a reel, slow\n2,a jig", "row 1 has more values than the table has columns"),
        ("id,text\n1,a reel", "has no column `caption`, but id, text"),
        ("1,2,3\n1,2,3,4", "row 1 has more values"),
        ('caption\n"' + "a" * 200_000, "not a CSV table"),
        ("caption\n \na jig", "1 captions are empty, first of all that of row 1"),
    ],
)
def test_mistakes_in_tables(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "prompts.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        load_prompts(str(tmp_path / "prompts.csv"))


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_prompts_without_splits(tmp_path: Path, suffix: str) -> None:
    """The splits depend on the texts alone: their order does not matter, and blank lines and a BOM do not count."""
    texts = [f"a {tempo} {kind}" for tempo in ("slow", "fast") for kind in ("jig", "reel", "march", "waltz", "polka")]
    lines = [text if suffix == ".txt" else json.dumps({"text": text}) for text in texts]
    path = tmp_path / f"prompts{suffix}"
    path.write_text("\ufeff" + "\n\n".join(lines), "utf-8")
    prompts = load_prompts(str(path))
    assert [prompt.text for prompt in prompts] == texts
    assert [len(texts_of(prompts, split)) for split in ("train", "validation", "test")] == [8, 1, 1]
    first = min(texts, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    assert texts_of(prompts, "validation") == [first]
    path.write_text("\n".join(reversed(lines)))
    assert {prompt.text: prompt.split for prompt in load_prompts(str(path))} == {p.text: p.split for p in prompts}
