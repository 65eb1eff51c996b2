"""band-tagger: accuracy on held-out tunes, and transposing a clip transposes its key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.evaluate.open import open_tagger
from tinymusician.errors import ModelError
from tinymusician.house_band.attributes import INSTRUMENTS, ClipAttributes
from tinymusician.house_band.corpus import Clip, RenderedSplit
from tinymusician.house_band.synth import Note, SoundfontSynth
from tinymusician.house_band.tagger import HouseBandTagger
from tinymusician.house_band.tagger_model import BandTagger, semitones
from tinymusician.house_band.train_tagger import CLASSES, KEYS, TaggerTask, labels_of
from tinymusician.training.engine import AdamConfig
from tinymusician.training.torch_engine import TorchEngine

TUNE = (0, 4, 7, 12, 7, 4, 0, 2, 4, 5, 7, 9, 7, 5, 4, 2, 0, 4, 7, 4, 0)


def played(band: SoundfontSynth, instrument: str, tonic: int, frames: int = 12) -> np.ndarray:
    notes = [Note(frames * i, frames * i + frames - 1, 60 + tonic + step) for i, step in enumerate(TUNE)]
    return band.render(notes[: 250 // frames], instrument, 250)


def test_it_knows_instruments_and_keys_of_a_tune_of_ours() -> None:
    tagger, band = open_tagger("band-tagger"), SoundfontSynth()
    assert isinstance(tagger, HouseBandTagger)
    expected = [(instrument, tonic) for instrument in INSTRUMENTS for tonic in (0, 2, 7)]
    actual = tagger([played(band, *one) for one in expected])
    names = [CLASSES["instrument"][place] for place in actual["instrument"].argmax(1)]
    keys = [KEYS[place] for place in actual["key"].argmax(1)]
    assert np.mean([name == one[0] for name, one in zip(names, expected, strict=True)]) > 0.8
    assert np.mean([key == KEYS[one[1]] for key, one in zip(keys, expected, strict=True)]) > 0.75
    for values in actual.values():
        np.testing.assert_allclose(values.sum(1), 1, atol=1e-5)


def test_transposing_a_tune_transposes_its_key() -> None:
    tagger, band = open_tagger("band-tagger"), SoundfontSynth()
    result = tagger([played(band, "flute", tonic) for tonic in range(-4, 8)])["key"]
    assert [KEYS[place] for place in result.argmax(1)] == [KEYS[tonic % 12] for tonic in range(-4, 8)]


def test_semitone_filters_peak_at_their_notes() -> None:
    filters, bins = semitones(), np.fft.rfftfreq(4096, 1 / 16_000)
    for note in (48, 69, 100):
        peak = bins[filters[:, note - 48].argmax()]
        assert peak == pytest.approx(440 * 2 ** ((note - 69) / 12), abs=4)


def test_tagger_learns_and_is_saved(tmp_path: Path) -> None:
    band = SoundfontSynth()
    clips, waves = [], []
    for instrument in INSTRUMENTS:
        for tonic in (0, 5):
            facts = ClipAttributes("x", 0.0, instrument, "fast", "reel", tonic, "major")
            clips.append(Clip(facts, "", (Note(0, 2, 60),)))
            waves.append((played(band, instrument, tonic) * 32767).astype(np.int16))
    split = RenderedSplit(np.stack(waves), clips)
    torch.manual_seed(0)
    task = TaggerTask(BandTagger(CLASSES, 16), split, split, 12, 0)
    engine = TorchEngine(task.module, AdamConfig())
    before = task.validate(engine)["loss"]
    for step in range(25):
        loss, _ = task.loss(engine, task.batch(step, 0, 1), step)
        engine.step(loss, 5e-3)
    after = task.validate(engine)
    assert after["loss"] < before / 2
    assert after["instrument"] > 1 / 3  # chance is a sixth
    task.module.save(tmp_path)
    again = BandTagger.load(tmp_path)
    audio = torch.from_numpy(split.audio(slice(0, 4)))
    with torch.no_grad():
        for question, logits in task.module.eval()(audio).items():
            torch.testing.assert_close(again(audio)[question], logits, atol=0.05, rtol=0.05)


def test_labels_equal_the_attributes() -> None:
    result = labels_of(ClipAttributes("x", 0.0, "flute", "slow", "jig", 9, "minor"))
    assert {question: CLASSES[question][place] for question, place in result.items()} == {
        "instrument": "flute",
        "tempo": "slow",
        "key": "A minor",
    }


def test_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no loadable band-tagger"):
        BandTagger.load(tmp_path)
