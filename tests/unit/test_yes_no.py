"""What a question of yes or no is about, in both clients."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tinymusician.bundle_refs import resolve_bundle
from tinymusician.runtime.audio_lm_bundle import DEFAULT_QUESTION_BUNDLE, open_audio_lm
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
    ("Is this a flute?", "fiddle", None, ()),
    ("Is this a flute?", "nothing, so no", None, ()),
]
SCRIPT = """
import { yesNoQuestion } from %s;
const { cases, attributes } = JSON.parse(process.argv[1]);
const named = cases.map(([question, written]) => yesNoQuestion(question, written, attributes));
console.log(JSON.stringify(named.map((one) => one && [one.attribute.attribute, one.values])));
"""


@pytest.mark.parametrize(("question", "written", "attribute", "values"), CASES)
def test_attribute_and_values_of_a_question(
    question: str, written: str, attribute: str | None, values: tuple[str, ...]
) -> None:
    about = yes_no_question(question, written, open_audio_lm(resolve_bundle(DEFAULT_QUESTION_BUNDLE)).questions)
    assert (about and (about.attribute.attribute, about.values)) == (attribute and (attribute, values))


def test_the_page_finds_the_same_values() -> None:
    attributes = open_audio_lm(resolve_bundle(DEFAULT_QUESTION_BUNDLE)).questions
    content = {"cases": [case[:2] for case in CASES], "attributes": [one.model_dump(mode="json") for one in attributes]}
    source = Path(__file__).parents[2] / "serve" / "page" / "device" / "answerer.js"
    words = ["node", "--input-type=module", "-e", SCRIPT % json.dumps(source.as_uri()), json.dumps(content)]
    by_page = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert by_page == [attribute and [attribute, list(values)] for _, _, attribute, values in CASES]
