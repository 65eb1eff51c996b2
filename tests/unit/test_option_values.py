"""The values that options name in people's words, in both clients."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tinymusician.bundle_refs import resolve_bundle
from tinymusician.runtime.audio_lm_bundle import DEFAULT_QUESTION_BUNDLE, AttributeQuestion, open_audio_lm
from tinymusician.runtime.option_values import option_values

Expected = tuple[tuple[str, ...], tuple[tuple[int, ...], ...], str | None, bool]
STRINGS = ("bowed strings", "plucked strings")
CASES: list[tuple[tuple[str, ...], Expected]] = [
    (("fiddle", "flute"), (("fiddle", "flute"), ((0,), (1,)), "instrument", True)),
    (("Violin", " ORGAN "), (("fiddle", "church organ"), ((0,), (1,)), "instrument", True)),
    (("Fiddle", "Violoncello", "Piano"), (("fiddle", "Violoncello", "piano"), ((0,), (1,), (2,)), "instrument", False)),
    (("slow", "quick"), (("slow", "fast"), ((0,), (1,)), "tempo", True)),
    (("strings", "winds"), ((*STRINGS, "brass", "woodwind"), ((0, 1), (2, 3)), "family", True)),
    (("Keyboards", "strings"), (("keyboard", *STRINGS), ((0,), (1, 2)), "family", True)),
    (("c sharp minor", "E-flat major"), (("Db minor", "Eb major"), ((0,), (1,)), "key", True)),
    (("major key", "minor key"), (("major", "minor"), ((0,), (1,)), "mode", True)),
    (("3/4", "6/8", "4/4"), (("triple", "compound", "duple"), ((0,), (1,), (2,)), "meter", True)),
    (("first", "second"), (("first half", "second half"), ((0,), (1,)), "busier_half", True)),
    (("violin", "fiddle", "flute"), (("fiddle", "flute"), ((0,), (0,), (1,)), "instrument", True)),
    (("2/4", "4/4"), (("duple",), ((0,), (0,)), "meter", True)),
    (("jazz", "blues"), (("jazz", "blues"), ((0,), (1,)), None, False)),
    (("falling", "happy"), (("falls", "happy"), ((0,), (1,)), None, False)),
    (("strings", "flute"), (("fiddle", "banjo", "flute"), ((0, 1), (2,)), "instrument", True)),
    (("a violin", "the flutes."), (("fiddle", "flute"), ((0,), (1,)), "instrument", True)),
]
SCRIPT = """
import { optionValues } from %s;
const { cases, attributes } = JSON.parse(process.argv[1]);
const named = cases.map((options) => optionValues(options, attributes));
const plain = (one) => [one.texts, one.members, one.attribute && one.attribute.attribute, one.isComplete];
console.log(JSON.stringify(named.map(plain)));
"""


@pytest.fixture(scope="module")
def attributes() -> tuple[AttributeQuestion, ...]:
    return open_audio_lm(resolve_bundle(DEFAULT_QUESTION_BUNDLE)).questions


@pytest.mark.parametrize(("options", "expected"), CASES)
def test_values_of_options(
    options: tuple[str, ...], expected: Expected, attributes: tuple[AttributeQuestion, ...]
) -> None:
    texts, members, attribute, is_complete = option_values(options, attributes)
    assert (texts, members, attribute and attribute.attribute, is_complete) == expected


def test_the_page_finds_the_same_values(attributes: tuple[AttributeQuestion, ...]) -> None:
    content = {"cases": [case[0] for case in CASES], "attributes": [one.model_dump(mode="json") for one in attributes]}
    source = Path(__file__).parents[2] / "serve" / "page" / "device" / "answerer.js"
    words = ["node", "--input-type=module", "-e", SCRIPT % json.dumps(source.as_uri()), json.dumps(content)]
    by_page = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert by_page == json.loads(json.dumps([expected for _, expected in CASES]))
