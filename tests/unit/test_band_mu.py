"""The packaged bundle that answers questions, on clips of its band: what it hears, and what it cannot tell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from jobs.cli.main import app
from jobs.launch.estimate import understand_cost
from jobs.understand.shapes import audio_lm_shape, student_shape
from tinymusician.bundle_refs import resolve_bundle
from tinymusician.house_band.attributes import INSTRUMENTS
from tinymusician.house_band.synth import Note, SoundfontSynth
from tinymusician.models.audio_lm import AudioLM, copy_layers
from tinymusician.models.audio_lm_files import load_audio_lm
from tinymusician.models.shape import WEIGHTS
from tinymusician.recipe import load_recipe
from tinymusician.runtime.audio_lm_bundle import DEFAULT_QUESTION_BUNDLE
from tinymusician.runtime.audio_reader import Wave
from tinymusician.runtime.best_of import rank
from tinymusician.runtime.prompts import CANNOT_TELL
from tinymusician.runtime.question_answerer import QuestionAnswerer

FRAMES = 250
SCALE = (60, 62, 64, 65, 67, 69, 71, 72, 71, 69, 67, 65, 64, 62, 60)
"""C major."""


@pytest.fixture(scope="module")
def answerer() -> QuestionAnswerer:
    return QuestionAnswerer(resolve_bundle(DEFAULT_QUESTION_BUNDLE))


def tune(instrument: str, frames_per_note: int = 16, above: int = 0) -> Wave:
    notes = [
        Note(index * frames_per_note, (index + 1) * frames_per_note, pitch + above)
        for index, pitch in enumerate(SCALE)
        if (index + 1) * frames_per_note <= FRAMES
    ]
    return SoundfontSynth().render(notes, instrument, FRAMES)


def test_every_instrument_is_recognized(answerer: QuestionAnswerer) -> None:
    for instrument in INSTRUMENTS:
        answer = answerer.ask(answerer.read(tune(instrument)), "Which instrument plays?")
        assert answer.answer == instrument
        assert answer.probability > 0.5


def test_question_in_other_words_is_about_its_attribute(answerer: QuestionAnswerer) -> None:
    answer = answerer.ask(answerer.read(tune("trumpet")), "Name the instrument.")
    assert answer.answer == "trumpet"
    assert {option.text for option in answer.options} == set(INSTRUMENTS)


def test_key_is_that_of_the_notes(answerer: QuestionAnswerer) -> None:
    """Of nine scales, of which the one on the flute in C is the least certain, at least eight are right."""
    keys, right = {0: "C major", 2: "D major", 7: "G major"}, 0
    for instrument in ("flute", "fiddle", "piano"):
        for above, key in keys.items():
            audio = answerer.read(tune(instrument, above=above))
            right += answerer.ask(audio, "In which key is the music?", tuple(keys.values())).answer == key
    assert right >= 8


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Is this a flute?", "no"),
        ("is it a violin", "yes"),
        ("Which instrument is playing this tune?", "fiddle"),
        ("What sort of family is the instrument of?", "bowed strings"),
        ("Who made this music?", CANNOT_TELL),
        ("What is it called?", CANNOT_TELL),
    ],
)
def test_questions_as_people_write_them(answerer: QuestionAnswerer, question: str, answer: str) -> None:
    """Yes or no in training sentences; the others are in no training."""
    assert answerer.ask(answerer.read(tune("fiddle")), question).answer == answer


@pytest.mark.parametrize("gain", [0.003, 0.1, 3.0, 100.0])
def test_the_level_does_not_matter(answerer: QuestionAnswerer, gain: float) -> None:
    for instrument in ("piano", "fiddle", "trumpet"):
        answer = answerer.ask(answerer.read(np.float32(gain) * tune(instrument)), "Which instrument plays?")
        assert answer.answer == instrument


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("WHICH INSTRUMENT PLAYS?", ()),
        ("Which instrument plays?", ("a violin", "a flute")),
        ("Which instrument plays?", ("fiddle", "drums", "flute")),
        ("Which instrument plays?", ("strings", "flute")),
    ],
)
def test_words_for_a_fiddle(answerer: QuestionAnswerer, question: str, options: tuple[str, ...]) -> None:
    answer = answerer.ask(answerer.read(tune("fiddle")), question, options)
    assert answer.answer == (options[0] if options else "fiddle")


def test_two_words_for_one_value_share_it(answerer: QuestionAnswerer) -> None:
    answer = answerer.ask(answerer.read(tune("fiddle")), "Which?", ("Violin", "fiddle", "flute"))
    violin, fiddle, flute = (one.probability for one in answer.options)
    assert violin == fiddle > 0.45 > flute


def test_a_question_that_names_the_values(answerer: QuestionAnswerer) -> None:
    answer = answerer.ask(answerer.read(tune("fiddle")), "Minor or major?")
    assert {one.text for one in answer.options} == {"major", "minor"}


@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.0, 3.0, 5.0, 12.0])
def test_silence_and_noise_have_no_answer(answerer: QuestionAnswerer, seconds: float) -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, round(16_000 * seconds)).astype(np.float32)
    for wave in (np.zeros_like(noise), noise):
        answer = answerer.ask(answerer.read(wave), "Which instrument plays?")
        assert answer.answer == CANNOT_TELL
        assert answer.cannot_tell > 0.5


@pytest.mark.parametrize("seconds", [1.5, 2.5])
def test_short_clips_have_the_instrument_and_the_key(answerer: QuestionAnswerer, seconds: float) -> None:
    for instrument in ("piano", "fiddle", "trumpet"):
        audio = answerer.read(tune(instrument)[: round(16_000 * seconds)])
        assert answerer.ask(audio, "Which instrument plays?").answer == instrument
        assert answerer.ask(audio, "In which key is the music?", ("C major", "F# major")).answer == "C major"


def test_clip_that_keeps_the_prompt_ranks_first(answerer: QuestionAnswerer) -> None:
    waves = [tune(instrument) for instrument in ("piano", "banjo", "trumpet")]
    ranking = rank(answerer, "a tune played on the banjo", waves, 16_000)
    assert ranking.best == 1
    assert ranking.scores[1] > 0.9 > max(ranking.scores[0], ranking.scores[2])


def test_command_answers_without_naming_a_model(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tune.flac", tune("fiddle"), 16_000)
    words = ["ask", "Which instrument plays?", "--audio", str(tmp_path / "tune.flac"), "--option", "flute"]
    ended = CliRunner().invoke(app, [*words, "--option", "fiddle", "--json"], catch_exceptions=False)
    reply = json.loads(ended.stdout)
    assert (reply["model"], reply["windows"]) == ("band-mu", 1)
    assert reply["answers"][0]["answer"] == "fiddle"


def test_packaged_student_can_copy_its_teachers_layers() -> None:
    """band-mu-tiny differs from band-mu in the number of layers alone, and trains no encoder."""
    recipe, teacher = load_recipe("band-mu-tiny"), load_audio_lm(WEIGHTS / "band-mu")
    assert recipe.understand is not None
    assert recipe.understand.teacher is not None
    stated = audio_lm_shape(recipe.understand, teacher.shape.audio_encoder.front_end)
    shape = replace(
        teacher.shape, lm=student_shape(teacher.shape.lm, stated.lm), projector_width=stated.projector_width
    )
    student = AudioLM(shape)
    copy_layers(teacher, student, recipe.understand.teacher.layers)
    last, first = (model.lm.state_dict() for model in (teacher, student))
    torch.testing.assert_close(first["model.layers.1.mlp.up_proj.weight"], last["model.layers.3.mlp.up_proj.weight"])
    cost = understand_cost(recipe)
    assert cost["language_model_parameters"] == sum(value.numel() for value in student.lm.parameters())
    assert cost["clips_of_masked_prediction"] == 0
