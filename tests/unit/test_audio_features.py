"""Audio features of signals with known values."""

from __future__ import annotations

import numpy as np
import pytest

from tinymusician.house_band.audio_features import (
    band_shape,
    chroma,
    chroma_correlation,
    in_tune,
    on_beat,
    onset_f_measure,
    onset_times,
    pitch_track,
    scale_consistency,
    spectral_centroid,
)

RATE = 16_000


def tone(midi: float, seconds: float, partials: int = 4) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    hertz = 440 * 2 ** ((midi - 69) / 12)
    wave = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, partials + 1))
    return 0.2 * wave * np.exp(-2 * time) * np.minimum(1, time / 0.005) * np.minimum(1, (seconds - time) / 0.05)


def melody(pitches: list[float], seconds: float) -> np.ndarray:
    return np.concatenate([np.zeros(RATE // 4), *[tone(pitch, seconds) for pitch in pitches]])


def test_onsets_are_where_the_notes_begin() -> None:
    result = onset_times(melody([60, 64, 67, 72, 67], 0.4), RATE)
    true = 0.25 + 0.4 * np.arange(5)
    assert onset_f_measure(result, true) == 1.0
    assert np.abs(result - true).max() < 0.03
    assert len(onset_times(np.zeros(RATE), RATE)) == 0


def test_f_measure_by_hand() -> None:
    true = np.array([1.0, 2.0, 3.0, 4.0])
    assert onset_f_measure(np.array([1.04, 2.0, 3.06]), true) == pytest.approx(2 * 2 / 7)
    assert onset_f_measure(np.array([1.0, 1.01]), np.array([1.0])) == pytest.approx(2 / 3), "one onset matches one"
    assert onset_f_measure(np.zeros(0), true) == 0
    assert onset_f_measure(np.zeros(0), np.zeros(0)) == 1


@pytest.mark.parametrize("midi", [57, 69, 76.3, 88])
def test_pitch_is_detected(midi: float) -> None:
    track = pitch_track(tone(midi, 0.8), RATE)
    assert np.nanmedian(track) == pytest.approx(midi, abs=0.1)
    assert np.isnan(pitch_track(np.zeros(RATE), RATE)).all()


def test_tuning_and_scale() -> None:
    assert in_tune(np.array([60.1, 61.9, np.nan])) == 1
    assert in_tune(np.array([60.4, 60.0])) == 0.5
    assert scale_consistency(np.array([62, 64, 66, 67, 69, 71, 73], float)) == 1, "D major"
    assert scale_consistency(np.arange(60, 72, dtype=float)) == pytest.approx(7 / 12)


def test_beats() -> None:
    assert on_beat(np.array([0, 0.16, 0.48, 0.64]), 0.16) == 1
    assert on_beat(np.array([0, 0.24, 0.48]), 0.16) == 0


def test_chroma_names_the_pitch_class() -> None:
    loudest = chroma(tone(69, 0.8, 1), RATE).sum(axis=1).argmax()
    assert loudest == 9
    one, same_an_octave_up, other = melody([60, 64], 0.5), melody([72, 76], 0.5), melody([61, 66], 0.5)
    assert chroma_correlation(one, one, RATE) == pytest.approx(1)
    assert chroma_correlation(one, same_an_octave_up, RATE) > 0.7 > 0.3 > chroma_correlation(one, other, RATE)


def test_centroid_follows_brightness() -> None:
    assert spectral_centroid(tone(69, 0.5, 1), RATE) == pytest.approx(440, rel=0.1)
    assert spectral_centroid(tone(69, 0.5, 8), RATE) > 1.3 * spectral_centroid(tone(69, 0.5, 1), RATE)
    quiet, loud = tone(69, 0.5), 3 * tone(69, 0.5)
    audible = band_shape(loud, RATE) > 0
    difference = band_shape(quiet, RATE) - band_shape(loud, RATE)
    assert np.ptp(difference[audible]) < 0.01, "loudness moves all audible bands together"
