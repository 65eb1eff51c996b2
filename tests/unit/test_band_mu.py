"""The packaged bundle that answers questions, on clips of its band: what it hears, and what it cannot tell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from jobs.cli.main import app
from tinymusician.bundle_refs import resolve_bundle
from tinymusician.house_band.attributes import INSTRUMENTS
from tinymusician.house_band.synth import Note, SoundfontSynth
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
        assert answer.probability > 0.9


def test_key_is_that_of_the_notes(answerer: QuestionAnswerer) -> None:
    for above, key in ((0, "C major"), (2, "D major"), (7, "G major")):
        audio = answerer.read(tune("flute", above=above))
        assert answerer.ask(audio, "In which key is the music?", ("C major", "D major", "G major")).answer == key


def test_silence_and_noise_have_no_answer(answerer: QuestionAnswerer) -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 80_000).astype(np.float32)
    for wave in (np.zeros(80_000, np.float32), noise):
        answer = answerer.ask(answerer.read(wave), "Which instrument plays?")
        assert answer.answer == CANNOT_TELL
        assert answer.cannot_tell > 0.5


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
