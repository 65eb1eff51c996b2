"""The engine that answers questions: against PyTorch, in windows, with its refusals; and the bundle it plays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.test_answers import COLOURS, choice
from tinymusician.errors import BundleError, RequestError
from tinymusician.models.audio_encoder import AudioEncoderShape
from tinymusician.models.audio_lm import AudioLM, AudioLMShape, LanguageModelShape
from tinymusician.models.audio_lm_files import load_audio_lm, model_folder
from tinymusician.models.spectral_front_end import FrontEndConfig, Scale
from tinymusician.quantize.audio_lm_bundle import (
    BundleFacts,
    audio_difference,
    group_of,
    write_graphs,
    write_manifest,
)
from tinymusician.quantize.precision import PrecisionPlan, load_plan
from tinymusician.runtime.audio_lm_bundle import AttributeQuestion, FinerAttribute, open_audio_lm
from tinymusician.runtime.question_answerer import (
    AudioInfo,
    QuestionAnswerer,
    _combined,
)
from tinymusician.runtime.question_checks import check_question
from tinymusician.runtime.softmax import softmax
from tinymusician.runtime.yes_no import NamedValues, YesNoQuestion
from tinymusician.understand.answering import TorchAnswerer
from tinymusician.understand.tokenizer import train_tokenizer

MANY = tuple(f"shade {number}" for number in range(12))
QUESTIONS = (
    AttributeQuestion(attribute="colour", text="Which?", options=COLOURS),
    AttributeQuestion(attribute="shade", text="Which shade?", options=MANY, per_window=True),
    AttributeQuestion(
        attribute="tint",
        text="Light or dark?",
        options=("light", "dark"),
        per_window=True,
        finer=FinerAttribute(attribute="shade", values={"light": MANY[:5], "dark": MANY[5:]}),
    ),
)
TEXTS = [choice(0).prompt, " red (A)", "Is it red?", " yes", " no", *(f" {shade}" for shade in MANY), " cannot tell"]
TOKENIZER = train_tokenizer(TEXTS, 320)


def new_model() -> AudioLM:
    torch.manual_seed(0)
    front_end = FrontEndConfig(Scale(-9, 4), Scale(-12, 4))
    encoder = AudioEncoderShape(32, 1, 2, 64, 62, front_end)
    lm = LanguageModelShape(vocabulary=320, width=32, layers=2, heads=4, key_value_heads=2, feed_forward=64)
    model = AudioLM(AudioLMShape(encoder, 32, lm)).eval()
    for parameter in model.parameters():
        parameter.data *= 3  # probabilities that are not all alike
    return model


def write_bundle(
    folder: Path, model: AudioLM, plan: PrecisionPlan, questions: tuple[AttributeQuestion, ...] = QUESTIONS
) -> Path:
    write_graphs(model, plan, TOKENIZER.to_str(), folder)
    facts = BundleFacts("tiny-mu", 1.0, questions, {}, {}, "Apache-2.0", {})
    write_manifest(model, plan, folder, facts)
    return folder


def write_bundle_of_its_words(folder: Path, model: AudioLM, clip: np.ndarray, question: str) -> tuple[str, ...]:
    """A bundle that lists, as an attribute's values, what its model writes about a clip; returns these values."""
    answerer = QuestionAnswerer(write_bundle(folder, model, load_plan("float32")), threads=1)
    values = (answerer.ask(answerer.read(clip), question).answer, "another word")
    words = AttributeQuestion(attribute="word", text="Which word?", options=values)
    write_bundle(folder, model, load_plan("float32"), (*QUESTIONS, words))
    return values


@pytest.fixture(scope="module")
def model() -> AudioLM:
    return new_model()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, model: AudioLM) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"), model, load_plan("float32"))


@pytest.fixture(scope="module")
def answerer(bundle: Path) -> QuestionAnswerer:
    return QuestionAnswerer(bundle, threads=1)


def wave(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)


def torch_features(model: AudioLM, clip: np.ndarray) -> np.ndarray:
    return TorchAnswerer(model, TOKENIZER).features(clip[None])


def test_trained_graph_is_pytorchs() -> None:
    """The packaged weights. Most bands of a chord are hardly above the floor, where float32 rounds its spectra."""
    times = np.arange(80_000) / 16_000
    chord = sum(0.2 * np.sin(2 * np.pi * hertz * times) for hertz in (262, 330, 392)) * np.exp(-times)
    model = load_audio_lm(model_folder("band-mu"))
    noise, melodic = (audio_difference(model, clip[None].astype(np.float32)) for clip in (wave(5.0), chord))
    assert max(*noise, melodic.embeddings) < 1e-4
    assert melodic.spectra < 2e-4


def test_options_are_averaged_over_all_rotations(model: AudioLM, answerer: QuestionAnswerer) -> None:
    answer = answerer.ask(answerer.read(wave(1.0)), "Which?", COLOURS)
    features = np.repeat(torch_features(model, wave(1.0)), 4, 0)
    rotated = [choice(0).rotated(by) for by in range(4)]
    results = TorchAnswerer(model, TOKENIZER).probabilities(features, rotated)
    by_option = [
        [result.options[q.options.index(c)] for c in COLOURS] for q, result in zip(rotated, results, strict=True)
    ]
    geometric = np.prod(np.array(by_option, np.float64), axis=0) ** 0.25
    expected = geometric / geometric.sum()
    np.testing.assert_allclose([option.probability for option in answer.options], expected, atol=1e-4)
    assert answer.cannot_tell == pytest.approx(np.mean([result.cannot_tell for result in results]), abs=1e-4)
    assert [option.text for option in answer.options] == list(COLOURS)


def test_many_options_are_judged_by_their_texts(model: AudioLM, answerer: QuestionAnswerer) -> None:
    """The log-likelihood of every text with its end, against PyTorch's over the whole sequence."""
    answer = answerer.ask(answerer.read(wave(1.0)), "Which shade?", MANY)
    features = torch.from_numpy(torch_features(model, wave(1.0)))
    prompt = TOKENIZER.encode("Question: Which shade?\n Answer:").ids
    totals = []
    for shade in MANY:
        text = [*TOKENIZER.encode(f" {shade}").ids, 0]
        ids = torch.tensor([[*prompt, *text]])
        is_text = torch.tensor([[False] * len(prompt) + [True] * len(text)])
        with torch.no_grad():
            logs = model(features, ids, is_text).log_softmax(-1)
        totals.append(logs[range(len(text)), text].sum().item())
    expected = softmax(np.array(totals, np.float32))
    np.testing.assert_allclose([option.probability for option in answer.options], expected, atol=1e-4)


def test_free_text_is_the_greedy_one(model: AudioLM, answerer: QuestionAnswerer) -> None:
    answer = answerer.ask(answerer.read(wave(1.0)), "Is it red?")
    expected = TorchAnswerer(model, TOKENIZER).generate(
        torch_features(model, wave(1.0)), ["Question: Is it red?\n Answer:"]
    )
    assert answer.answer
    assert expected[0].startswith(answer.answer[:20])
    assert answer.options == ()


def test_a_value_in_other_words_brings_all_values(tmp_path: Path, model: AudioLM) -> None:
    values = write_bundle_of_its_words(tmp_path, model, wave(1.0), "Is it red?")
    answerer = QuestionAnswerer(tmp_path, threads=1)
    audio = answerer.read(wave(1.0))
    answer = answerer.ask(audio, "Is it red?")
    assert answer == answerer.ask(audio, "Is it red?", values)
    assert [option.text for option in answer.options] == list(values)


def test_question_of_the_bundle_brings_its_options(answerer: QuestionAnswerer) -> None:
    audio = answerer.read(wave(1.0))
    without, given = (answerer.ask(audio, "which", options) for options in ((), COLOURS))
    assert (without.question, without.answer, without.cannot_tell) == (given.question, given.answer, given.cannot_tell)
    shares = {one.text: one.probability for one in given.options}
    assert {one.text: one.probability for one in without.options} == pytest.approx(shares)
    attributes = [answer.attribute for answer in answerer.ask_all(audio)]
    assert attributes == ["colour", "shade", "tint"]


def test_answer_that_follows_from_a_finer_attribute_is_a_sum(answerer: QuestionAnswerer) -> None:
    audio = answerer.read(wave(1.0))
    shades = [option.probability for option in answerer.ask(audio, "Which shade?", MANY).options]
    for question in ("Light or dark?", "Is it dark or light?"):
        answer = answerer.ask(audio, question, ("dark", "light"))
        assert [option.text for option in answer.options] == ["dark", "light"]
        assert [option.probability for option in answer.options] == pytest.approx([sum(shades[5:]), sum(shades[:5])])


def test_long_audio_is_the_mean_of_its_windows(answerer: QuestionAnswerer) -> None:
    pieces = [wave(1.0, seed) for seed in range(10)]
    audio = answerer.read(np.concatenate(pieces))
    assert (audio.info.windows, audio.info.audio_seconds) == (10, 10.0)
    answer = answerer.choose(audio, "Which shade?", MANY)
    alone = [answerer.choose(answerer.read(piece), "Which shade?", MANY) for piece in pieces]
    logs = np.log([[option.probability for option in each.options] for each in alone])
    weights = np.array([1 - each.cannot_tell for each in alone])
    expected = softmax(np.asarray(weights @ logs / weights.sum()))
    np.testing.assert_allclose([option.probability for option in answer.options], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("question", "options", "problem"),
    [
        ("\u200b", (), "question: is empty"),
        ("Which\nshade?", (), "control or broken characters"),
        ("Which?", ("big  flute", "Big flute"), "'big flute' is there twice"),
        ("Which?", ("flu\u0308te", "fl\u00fcte"), "is there twice"),
        ("Which?", ("red", "Cannot tell"), "'cannot tell' is always a possible answer"),
        ("Which?", tuple(f"{number}" + "\U0001f3bb" * 58 for number in range(8)), "tokens; at most 400 are allowed"),
        ("\U0001f3bb" * 300, (), "tokens; at most 400 are allowed"),
    ],
)
def test_questions_that_look_empty_equal_or_are_too_long(
    answerer: QuestionAnswerer, question: str, options: tuple[str, ...], problem: str
) -> None:
    audio = answerer.read(wave(1.0))
    with pytest.raises(RequestError, match=problem):
        answerer.ask(audio, question, options)


def test_a_bundle_without_questions_needs_one(answerer: QuestionAnswerer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answerer, "manifest", answerer.manifest.model_copy(update={"questions": ()}))
    with pytest.raises(RequestError, match="this bundle lists none; one is needed"):
        answerer.ask_all(answerer.read(wave(1.0)))


def test_samples_far_above_full_scale_are_refused(answerer: QuestionAnswerer) -> None:
    with pytest.raises(RequestError, match="audio: has samples that are not finite, or above 1000; full scale is 1"):
        answerer.read(wave(1.0) * np.float32(1e30))


def test_yes_is_as_probable_as_all_that_is_named(answerer: QuestionAnswerer) -> None:
    audio = answerer.read(wave(1.0))
    parts = [NamedValues(one, one.options[:2]) for one in answerer.manifest.questions[:2]]
    answer = answerer._yes_or_no(audio, "Is it?", YesNoQuestion(parts[0].attribute, tuple(parts)))
    shares = [
        sum(
            option.probability
            for option in answerer.choose(audio, one.attribute.text, one.attribute.options).options[:2]
        )
        for one in parts
    ]
    assert [option.text for option in answer.options] == ["yes", "no"]
    assert answer.options[0].probability == pytest.approx(shares[0] * shares[1])
    undecided = answerer._yes_or_no(audio, "Is it?", YesNoQuestion(parts[0].attribute, ()))
    assert (undecided.question, [option.text for option in undecided.options]) == (
        "Is it?",
        [*parts[0].attribute.options],
    )


def test_silent_windows_change_nothing() -> None:
    """Four windows of which nothing can be told, one that is clear: the clear one decides, and can be told."""
    logs = np.log(np.array([[0.25, 0.75]] * 4 + [[0.9, 0.1]], np.float32))
    answer = _combined("Which?", ("red", "blue"), logs, np.array([1.0, 1.0, 1.0, 1.0, 0.02], np.float32))
    assert answer.answer == "red"
    assert answer.options[0].probability == pytest.approx(0.9, abs=1e-3)
    assert answer.cannot_tell == pytest.approx(0.02)
    silent = _combined("Which?", ("red", "blue"), logs[:4], np.full(4, 0.97, np.float32))
    assert (silent.answer, silent.probability) == ("cannot tell", pytest.approx(0.97))


@pytest.mark.parametrize("seconds", [0.8, 2.0])
def test_other_audio_has_no_answers_of_single_windows(answerer: QuestionAnswerer, seconds: float) -> None:
    answers = answerer.ask_all(answerer.read(wave(seconds)))
    assert [answer.attribute for answer in answers] == ["colour"]


def test_short_audio_is_repeated(answerer: QuestionAnswerer) -> None:
    short = wave(0.6)
    repeated = answerer.ask(answerer.read(np.concatenate([short, short])[:16_000]), "Which?", COLOURS)
    answer = answerer.ask(answerer.read(short), "Which?", COLOURS)
    assert [one.probability for one in answer.options] == [one.probability for one in repeated.options]
    assert answerer.read(short).info == AudioInfo(0.6, 1)


def test_a_partly_named_attribute_is_one_of_a_window_too(answerer: QuestionAnswerer) -> None:
    with pytest.raises(RequestError, match="is one about 1 s"):
        answerer.ask(answerer.read(wave(2.0)), "One?", (MANY[0], MANY[1], "another shade"))


@pytest.mark.parametrize(("question", "options"), [("which shade", ()), ("Which shade?", MANY), ("One?", MANY[:3])])
def test_an_attribute_of_a_window_is_none_of_longer_audio(
    answerer: QuestionAnswerer, question: str, options: tuple[str, ...]
) -> None:
    for seconds in (0.9, 1.0):
        assert answerer.ask(answerer.read(wave(seconds)), question, options).options
    for seconds in (0.8, 2.0):
        expected = (
            rf"lasts {seconds:g} s; the answer to 'Which shade\?' is one about 1 s; 0\.9 to 1 s of audio are needed"
        )
        with pytest.raises(RequestError, match=expected):
            answerer.ask(answerer.read(wave(seconds)), question, options)


def test_work_ends_when_it_is_cancelled(answerer: QuestionAnswerer) -> None:
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise TimeoutError

    audio = answerer.read(wave(9.0), check)
    with pytest.raises(TimeoutError):
        answerer.ask(audio, "Which?", COLOURS)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (wave(0.1), "audio: lasts 0.1 s; 0.5 to 600 s are allowed"),
        (np.zeros(16_000 * 601, np.float32), "audio: lasts 601 s"),
        (np.full(16_000, np.nan, np.float32), "not finite"),
    ],
)
def test_unusable_audio_is_refused(answerer: QuestionAnswerer, samples: np.ndarray, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        answerer.read(samples)


@pytest.mark.parametrize(
    ("question", "options", "message"),
    [
        (" ", (), "question: is empty"),
        ("a" * 501, (), "question: 501 characters; at most 300"),
        ("Which?", ("red",), "options: 1; 2 to 50 are allowed, or none"),
        ("Which?", tuple(str(n) for n in range(60)), "options: 60; 2 to 50"),
        ("Which?", ("red", " Red"), "options: 'red' is there twice"),
        ("Which?", ("red", " "), "options: one is empty"),
        ("Which?", ("red", "r" * 61), "options: one has 61 characters; at most 60"),
    ],
)
def test_unusable_questions_are_refused(question: str, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_question(question, options)


def test_int8_is_smaller_and_near(tmp_path: Path, model: AudioLM, bundle: Path, answerer: QuestionAnswerer) -> None:
    plan = PrecisionPlan(name="mu", default="int8", groups={"embeddings": "int8"}, block_size=32)
    small = write_bundle(tmp_path, model, plan)
    sizes = [(folder / "lm.onnx").stat().st_size for folder in (small, bundle)]
    assert sizes[0] < 0.5 * sizes[1]
    one, other = (each.ask(each.read(wave(1.0)), "Which?", COLOURS) for each in (QuestionAnswerer(small), answerer))
    for first, second in zip(one.options, other.options, strict=True):
        assert first.probability == pytest.approx(second.probability, abs=0.1)


def test_groups_of_nodes() -> None:
    nodes = ("layers.1.attention.q", "logits", "embed_tokens", "projector.linear1", "spectrum.products", "mel")
    assert [group_of(node) for node in nodes] == [
        "layers.1",
        "embeddings",
        "embeddings",
        "projector",
        "front_end",
        "front_end",
    ]
    assert group_of("audio_encoder.student_encoder.blocks.0.mlp.fc1") == "encoder"


def test_altered_file_is_not_loaded(tmp_path: Path, model: AudioLM) -> None:
    folder = write_bundle(tmp_path, model, load_plan("float32"))
    content = bytearray((folder / "lm.onnx").read_bytes())
    content[100] ^= 1
    (folder / "lm.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"lm\.onnx was altered"):
        QuestionAnswerer(folder)


def test_bundle_of_another_kind_is_named(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        open_audio_lm(tmp_path)
    from tinymusician.runtime.bundle import PACKAGED

    with pytest.raises(BundleError, match="generates music; one that answers questions is needed"):
        open_audio_lm(PACKAGED / "band-small")
    content = json.loads((bundle / "manifest.json").read_text())
    content["files"] = [file for file in content["files"] if file["role"] != "lm"]
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match="0 files with role 'lm'"):
        open_audio_lm(tmp_path)
