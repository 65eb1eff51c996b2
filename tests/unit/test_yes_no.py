"""What a question of yes or no is about, in both clients."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tinymusician.bundle_refs import resolve_bundle
from tinymusician.runtime.audio_lm_bundle import DEFAULT_QUESTION_BUNDLE, AttributeQuestion, open_audio_lm
from tinymusician.runtime.yes_no import yes_no_question

CASES: list[tuple[str, str, str | None, tuple[str, ...]]] = [
    ("Is this a flute?", "fiddle, so yes", "instrument", ("flute",)),
    ("is it a Violin", "fiddle, so no", "instrument", ("fiddle",)),
    ("Is it a church organ or a piano?", "piano, so yes", "instrument", ("church organ", "piano")),
    ("Is it one of the bowed strings?", "flute, so no", "family", ("bowed strings",)),
    ("Is the key A minor?", "E major, so no", "key", ("A minor",)),
    ("A minor?", "E major, so no", "key", ("A minor",)),
    ("is it in a minor?", "E major, so no", "key", ("A minor",)),
    ("Is A minor, for once, the key?", "E major, so no", "key", ("A minor",)),
    ("is it in d major?", "A major, so no", "key", ("D major",)),
    ("IS IT IN F# MINOR?", "A major, so no", "key", ("F# minor",)),
    ("Is it in C# major?", "E major, so no", "key", ("Db major",)),
    ("Is it in C sharp minor?", "E major, so no", "key", ("Db minor",)),
    ("Is it in B♭ minor or E-flat major?", "E major, so no", "key", ("Eb major", "Bb minor")),
    ("Is this a minor key?", "A minor, so yes", "mode", ("minor",)),
    ("A minor key?", "A minor, so yes", "mode", ("minor",)),
    ("is it in a minor key?", "A minor, so yes", "mode", ("minor",)),
    ("Is it true that it rises, then falls?", "falls, so no", "contour", ("rises, then falls",)),
    ("Is the highest note F#?", "F, so no", "highest_note", ("F#",)),
    ("is the highest note bb?", "F, so no", "highest_note", ("Bb",)),
    ("Is the highest note an A?", "F, so no", "highest_note", ("A",)),
    ("Are 16 to 23 notes played?", "24 or more, so no", "note_count", ("16 to 23",)),
    ("Is it quick?", "fast, so yes", "tempo", ()),
    ("Is it faster than medium?", "fast, so yes", "tempo", ()),
    ("Isn't it a flute?", "fiddle, so yes", "instrument", ()),
    ("Is it not a flute?", "fiddle, so yes", "instrument", ()),
    ("Are there as many steps as leaps?", "steps, so no", "motion", ()),
    ("Is this a fluted column?", "fiddle, so no", "instrument", ()),
    ("Is it the key of sadness?", "A minor, so no", "key", ()),
    ("Is this anything but a fiddle?", "fiddle, so yes", "instrument", ()),
    ("Is this a flute and a fiddle?", "fiddle, so yes", "instrument", ()),
    ("Is it played by a flute or a fiddle?", "fiddle, so yes", "instrument", ("fiddle", "flute")),
    ("Is this a flute?", "fiddle", None, ()),
    ("Is this a flute?", "nothing, so no", None, ()),
]
SEVERAL: list[tuple[str, str, list[tuple[str, tuple[str, ...]]]]] = [
    ("Is it a piano in F# major?", "F# major, so yes", [("key", ("F# major",)), ("instrument", ("piano",))]),
    ("Is this a fast fiddle?", "fiddle, so no", [("instrument", ("fiddle",)), ("tempo", ("fast",))]),
    (
        "Is it played by a flute, in D major, and slow?",
        "slow, so yes",
        [("tempo", ("slow",)), ("instrument", ("flute",)), ("key", ("D major",))],
    ),
    ("Is it a fiddle in a minor key?", "A minor, so yes", [("mode", ("minor",)), ("instrument", ("fiddle",))]),
]
SCRIPT = """
import { yesNoQuestion } from %s;
const { cases, attributes } = JSON.parse(process.argv[1]);
const found = cases.map(([question, written]) => yesNoQuestion(question, written, attributes));
const plain = (named) => named.map(({ attribute, values }) => [attribute.attribute, values]);
console.log(JSON.stringify(found.map((one) => one && [one.attribute.attribute, plain(one.named)])));
"""
Expected = tuple[str, list[tuple[str, tuple[str, ...]]]] | None


@pytest.fixture(scope="module")
def attributes() -> tuple[AttributeQuestion, ...]:
    return open_audio_lm(resolve_bundle(DEFAULT_QUESTION_BUNDLE)).questions


def expected_cases() -> list[tuple[str, str, Expected]]:
    cases: list[tuple[str, str, Expected]] = []
    for question, written, attribute, values in CASES:
        cases.append((question, written, (attribute, [(attribute, values)] if values else []) if attribute else None))
    return cases + [(question, written, (named[0][0], named)) for question, written, named in SEVERAL]


@pytest.mark.parametrize(("question", "written", "expected"), expected_cases())
def test_attributes_and_values_of_a_question(
    question: str, written: str, expected: Expected, attributes: tuple[AttributeQuestion, ...]
) -> None:
    about = yes_no_question(question, written, attributes)
    named = about and [(one.attribute.attribute, one.values) for one in about.named]
    assert (about and (about.attribute.attribute, named)) == expected


def test_the_page_finds_the_same_values(attributes: tuple[AttributeQuestion, ...]) -> None:
    cases = expected_cases()
    content = {"cases": [case[:2] for case in cases], "attributes": [one.model_dump(mode="json") for one in attributes]}
    source = Path(__file__).parents[2] / "serve" / "page" / "device" / "answerer.js"
    words = ["node", "--input-type=module", "-e", SCRIPT % json.dumps(source.as_uri()), json.dumps(content)]
    by_page = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert by_page == json.loads(json.dumps([expected for _, _, expected in cases]))
