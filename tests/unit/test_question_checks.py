"""What is refused before a question is answered, and the arithmetic of yes and no, in both clients."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tinymusician.errors import RequestError
from tinymusician.runtime.audio_lm_bundle import AttributeQuestion
from tinymusician.runtime.question_answerer import Answer, AudioInfo, AudioState, Option, QuestionAnswerer
from tinymusician.runtime.question_checks import check_question, check_tokens

PAGE = Path(__file__).parents[2] / "serve" / "page" / "device"
REFUSED: list[tuple[str, tuple[str, ...], str]] = [
    ("", (), "is empty"),
    (" \t ", (), "is empty"),
    ("\u200b\u2060", (), "is empty"),
    ("Which\ncolour?", (), "control or broken characters"),
    ("Which?", ("red", "bl\x1bue"), "control or broken characters"),
    ("Wh\udcffich?", (), "control or broken characters"),
    ("x" * 301, (), "301 characters; at most 300"),
    ("😀" * 301, (), "301 characters; at most 300"),
    ("Which?", ("red",), "1(;| possible answers;) 2 to 50"),
    ("Which?", tuple(map(str, range(51))), "51(;| possible answers;) 2 to 50"),
    ("Which?", ("red", " "), "is empty"),
    ("Which?", ("red", "\u00ad"), "is empty"),
    ("Which?", ("red", "b" * 61), "60"),
    ("Which?", ("red", "Cannot  tell"), "always a possible answer"),
    ("Which?", ("red", "ＲＥＤ"), "is there twice"),
    ("Which?", ("Straße", "strasse"), "is there twice"),
    ("Which?", ("re\u200bd", "red"), "is there twice"),
]
ACCEPTED: list[tuple[str, tuple[str, ...]]] = [
    ("Which?", ()),
    ("x" * 300, ("red", "blue")),
    ("😀" * 300, ("b" * 60, "🎻" * 60)),
    ("Welche Straße?", ("rises, then falls", "falls, then rises")),
    ("Which?", tuple(map(str, range(50)))),
]
TOKENS: list[tuple[tuple[int, ...], bool]] = [
    ((400,), True),
    ((401,), False),
    ((100, 150, 150), True),
    ((100, 150, 151), False),
    ((100, *[200] * 10), True),
    ((100, *[201] * 10), False),
]
CHECKS = """
import { checkQuestion, checkTokens } from %s;
const { questions, tokens } = JSON.parse(process.argv[1]);
const refusal = (check) => { try { check(); return null; } catch (error) { return error.message; } };
console.log(JSON.stringify({
  questions: questions.map(([question, options]) => refusal(() => checkQuestion(question, options))),
  tokens: tokens.map((sizes) => refusal(() => checkTokens(sizes)) === null),
}));
"""


def run_page(script: str, module: str, content: object) -> object:
    words = ["node", "--input-type=module", "-e", script % json.dumps((PAGE / module).as_uri()), json.dumps(content)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize(("question", "options", "message"), REFUSED)
def test_refused_questions(question: str, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_question(question, options)


@pytest.mark.parametrize(("question", "options"), ACCEPTED)
def test_accepted_questions(question: str, options: tuple[str, ...]) -> None:
    check_question(question, options)


class _Lengths:
    """A tokenizer whose texts are their numbers of tokens."""

    def encode_batch(self, texts: list[str]) -> list[SimpleNamespace]:
        return [SimpleNamespace(ids=range(int(text))) for text in texts]


@pytest.mark.parametrize(("sizes", "is_accepted"), TOKENS)
def test_tokens(sizes: tuple[int, ...], is_accepted: bool) -> None:
    question, *options = map(str, sizes)
    refusal = pytest.raises(RequestError, match="tokens; at most 400 are allowed, or 2000 of more than 8 options")
    with contextlib.nullcontext() if is_accepted else refusal:
        check_tokens(_Lengths(), question, options)  # type: ignore[arg-type]


def test_the_page_refuses_the_same() -> None:
    questions = [case[:2] for case in REFUSED] + ACCEPTED
    page = run_page(CHECKS, "question_checks.js", {"questions": questions, "tokens": [sizes for sizes, _ in TOKENS]})
    assert isinstance(page, dict)
    assert page["tokens"] == [is_accepted for _, is_accepted in TOKENS]
    assert [message is not None for message in page["questions"]] == [True] * len(REFUSED) + [False] * len(ACCEPTED)


ATTRIBUTES = (
    AttributeQuestion(attribute="colour", text="Which?", options=("red", "blue"), in_prompts=True),
    AttributeQuestion(attribute="size", text="How big?", options=("small", "large"), in_prompts=True),
)
SHARES = {"Which?": (0.25, 0.75), "How big?": (0.9, 0.10000002), "Which one?": (0.5, 0.3, 0.2)}
UNABLE = {"Which?": 0.2, "Which one?": 0.9}
YES_NO: list[tuple[str, tuple[str, ...], str]] = [
    ("Is it red?", (), "blue, so no"),
    ("Is it red or blue?", (), "blue, so no"),
    ("Is it blue and large?", (), "blue, so no"),
    ("Is it small?", ("No", "YES"), "small, so yes"),
    ("Is it not red?", (), "red, so yes"),
    ("Is it so?", (), "large, so no"),
    ("Large or small?", (), "cannot tell"),
    ("Which one?", ("large", "the SMALLs."), ""),
    ("Which one?", ("large", "huge", "small"), ""),
    ("Is it no red?", (), "red, so no"),
    ("Is it red, yes or no?", (), "red, so no"),
]
ASK = """
import { Answerer } from %s;
const { questions, attributes, shares, unable } = JSON.parse(process.argv[1]);
const answers = [];
for (const [question, options, written] of questions) {
  const answerer = new Answerer();
  answerer.manifest = { questions: attributes };
  answerer.shape = { window_seconds: 1 };
  answerer.tokenizer = { encode: () => ({ ids: [] }) };
  answerer.choose = async (_, text, values) => ({
    question: text,
    cannot_tell: unable[text] ?? 0.3,
    options: values.map((value, index) => ({ text: value, probability: shares[text][index] })),
  });
  answerer.generate = async () => ({ question, answer: written, cannot_tell: 0, options: [] });
  answers.push(await answerer.ask(Object.assign([{}], { isWindow: true }), question, options));
}
console.log(JSON.stringify(answers.map(({ question, cannot_tell, options }) => ({ question, cannot_tell, options }))));
"""


class _FixedAnswerer(QuestionAnswerer):
    """Answers with given probabilities, without a bundle."""

    def __init__(self, written: str) -> None:
        self._written = written
        self.manifest = SimpleNamespace(questions=ATTRIBUTES)  # type: ignore[assignment]
        self.shape = SimpleNamespace(window_seconds=1)  # type: ignore[assignment]
        self.tokenizer = SimpleNamespace(  # type: ignore[assignment]
            encode_batch=lambda texts: [SimpleNamespace(ids=[]) for _ in texts]
        )

    def choose(self, audio: AudioState, question: str, options: tuple[str, ...]) -> Answer:
        listed = tuple(Option(*one) for one in zip(options, SHARES[question], strict=True))
        return Answer(question, options[0], 0.0, UNABLE.get(question, 0.3), listed)

    def generate(self, audio: AudioState, question: str, options: object = ()) -> Answer:
        return Answer(question, self._written, 1.0, 0.0, ())


def test_yes_and_no_in_both_clients() -> None:
    audio = AudioState(AudioInfo(1.0, 1), [], lambda: None)
    answers = [_FixedAnswerer(written).ask(audio, question, options) for question, options, written in YES_NO]
    expected = [
        ("Is it red?", {"yes": 0.25, "no": 0.75}, 0.2),
        ("Is it red or blue?", {"red": 0.25, "blue": 0.75}, 0.2),
        ("Is it blue and large?", {"yes": 0.075, "no": 0.925}, 0.3),
        ("Is it small?", {"No": 0.1, "YES": 0.9}, 0.3),
        ("Is it not red?", {"red": 0.25, "blue": 0.75}, 0.2),
        ("Is it so?", {"small": 0.9, "large": 0.1}, 0.3),
        ("Large or small?", {"small": 0.9, "large": 0.1}, 0.3),
        ("Which one?", {"large": 0.9, "the SMALLs.": 0.1}, 0.3),
        ("Which one?", {"large": 0.5, "huge": 0.3, "small": 0.2}, 0.3),
        ("Is it no red?", {"red": 0.25, "blue": 0.75}, 0.2),
        ("Is it red, yes or no?", {"yes": 0.25, "no": 0.75}, 0.2),
    ]
    attributes = [one.model_dump(mode="json") for one in ATTRIBUTES]
    by_page = run_page(
        ASK, "answerer.js", {"questions": YES_NO, "attributes": attributes, "shares": SHARES, "unable": UNABLE}
    )
    for answer, page, (question, shares, cannot_tell) in zip(answers, cast(list[dict], by_page), expected, strict=True):
        assert {one.text: one.probability for one in answer.options} == pytest.approx(shares, abs=1e-6)
        assert {one["text"]: one["probability"] for one in page["options"]} == pytest.approx(shares, abs=1e-6)
        assert (answer.question, answer.cannot_tell) == (question, cannot_tell)
        assert (page["question"], page["cannot_tell"]) == (question, cannot_tell)
