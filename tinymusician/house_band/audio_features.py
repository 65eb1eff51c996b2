"""Audio features in NumPy and SciPy: onsets, chroma, pitch and spectral shape.

They measure whether audio is music of the requested kind: notes that begin where the score says, pitches of a scale, a
brighter or darker instrument. All take mono waves at `rate` Hz in [-1, 1].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter1d, uniform_filter1d
from scipy.signal import stft

Wave = npt.NDArray[np.floating[Any]]
HOP_SECONDS = 0.01
_LATE_FRAMES = 2  # a 64 ms window begins to rise two frames before the note it is centred on
_MAJOR = np.array([0, 2, 4, 5, 7, 9, 11])


def spectrogram(wave: Wave, rate: int, window: int = 1024) -> tuple[Wave, Wave]:
    """Frequencies [F] in Hz and magnitudes [F, frames], one frame per 10 ms, centred."""
    hop = round(rate * HOP_SECONDS)
    _, _, values = stft(wave, rate, nperseg=window, noverlap=window - hop, boundary="even")
    return np.fft.rfftfreq(window, 1 / rate), np.abs(values) * window / 2


def onset_times(wave: Wave, rate: int) -> npt.NDArray[np.float64]:
    """The onsets of notes in seconds: peaks of the rise of the log spectrum.

    The rise over 40 ms is summed over frequencies up to 5 kHz where it is positive (spectral flux; Bello et al., 2005;
    the maximum over neighbouring bins suppresses vibrato, as in SuperFlux, Böck and Widmer, 2013). A peak counts if it
    is the largest within 40 ms, near a third of the clip's strongest rises, and well above its neighbourhood. The
    constants were chosen on training clips.
    """
    frequencies, magnitude = spectrogram(wave, rate)
    log = np.log1p(magnitude[frequencies < 5000])
    flux = np.maximum(log[:, 4:] - maximum_filter1d(log, 3, axis=0)[:, :-4], 0).sum(axis=0)
    flux = np.concatenate([np.zeros(2), flux, np.zeros(2)])
    if flux.max() <= 0:
        return np.zeros(0)
    strong = flux > np.maximum(uniform_filter1d(flux, 21) * 1.5, 0.3 * np.quantile(flux, 0.98))
    peaks = np.flatnonzero(strong & (flux == maximum_filter1d(flux, 9)))
    return np.asarray((peaks + _LATE_FRAMES) * HOP_SECONDS, np.float64)


def onset_f_measure(detected: npt.NDArray[np.float64], true: npt.NDArray[np.float64], tolerance: float = 0.05) -> float:
    """F-measure of onsets matched one to one within `tolerance` seconds (MIREX's definition)."""
    if len(detected) == 0 or len(true) == 0:
        return float(len(detected) == len(true))
    matched, index = 0, 0
    for time in np.sort(true):
        while index < len(detected) and detected[index] < time - tolerance:
            index += 1
        if index < len(detected) and detected[index] <= time + tolerance:
            matched, index = matched + 1, index + 1
    return 2 * matched / (len(detected) + len(true))


def chroma(wave: Wave, rate: int) -> npt.NDArray[np.float64]:
    """Energy by pitch class, [12, frames], each frame scaled to length one; silence is zero."""
    frequencies, magnitude = spectrogram(wave, rate, 4096)
    audible = (frequencies > 100) & (frequencies < 4000)
    pitch = np.round(69 + 12 * np.log2(frequencies[audible] / 440)).astype(int) % 12
    energy = magnitude[audible] ** 2
    classes = np.stack([energy[pitch == k].sum(axis=0) for k in range(12)])
    length = np.linalg.norm(classes, axis=0)
    loud = length > 1e-3 * length.max() if length.max() > 0 else length > 0
    return np.where(loud, classes / np.where(loud, length, 1), 0.0)


def chroma_correlation(made: Wave, true: Wave, rate: int) -> float:
    """Pearson correlation of two waves' chromas over pitch classes and frames."""
    return float(np.corrcoef(chroma(made, rate).ravel(), chroma(true, rate).ravel())[0, 1])


def spectral_centroid(wave: Wave, rate: int) -> float:
    """The energy-weighted mean frequency in Hz."""
    frequencies, magnitude = spectrogram(wave, rate)
    energy = (magnitude**2).sum(axis=1)
    return float((frequencies * energy).sum() / max(energy.sum(), 1e-12))


def band_shape(wave: Wave, rate: int, bands: int = 24) -> npt.NDArray[np.float64]:
    """The mean log energy in `bands` bands, evenly spaced in log frequency from 100 Hz, minus their mean: a timbre."""
    frequencies, magnitude = spectrogram(wave, rate)
    edges = np.geomspace(100, rate / 2, bands + 1)
    energy = (magnitude**2).mean(axis=1)
    band_index = np.digitize(frequencies, edges)
    levels = np.array([np.log(energy[band_index == k + 1].sum() + 1e-6) for k in range(bands)])
    return np.asarray(levels - levels.mean())


def pitch_track(wave: Wave, rate: int) -> npt.NDArray[np.float64]:
    """The pitch of every 20 ms in MIDI numbers, NaN where there is none.

    Source: YIN's cumulative mean normalized difference (de Cheveigné and Kawahara, 2002, eq. 8), threshold 0.2.
    """
    size, hop = 1024, round(rate * 0.02)
    longest, shortest = rate // 150, rate // 1600
    starts = range(0, len(wave) - 2 * size, hop)
    return np.array([_pitch(wave[start : start + 2 * size], size, shortest, longest, rate) for start in starts])


def _pitch(piece: Wave, size: int, shortest: int, longest: int, rate: int) -> float:
    if np.sqrt(np.mean(piece**2)) < 0.005:
        return float("nan")
    lags = np.arange(longest + 2)
    head = piece[:size]
    product = np.array([head @ piece[lag : lag + size] for lag in lags])
    energy = np.array([piece[lag : lag + size] @ piece[lag : lag + size] for lag in lags])
    difference = energy[0] + energy - 2 * product
    running = np.cumsum(difference[1:])
    normal = np.concatenate([[1.0], difference[1:] * lags[1:] / np.maximum(running, 1e-12)])
    low = np.flatnonzero(normal[shortest:longest] < 0.2)
    if len(low) == 0:
        return float("nan")
    lag = shortest + low[0]
    while lag + 1 <= longest and normal[lag + 1] < normal[lag]:
        lag += 1
    left, middle, right = normal[lag - 1 : lag + 2]
    bend = left - 2 * middle + right
    exact = lag + (0.5 * (left - right) / bend if bend > 0 else 0.0)
    return float(69 + 12 * np.log2(rate / exact / 440))


def in_tune(track: npt.NDArray[np.float64]) -> float:
    """The share of pitched frames within a quarter of a semitone of the nearest note; chance is one half."""
    pitched = track[~np.isnan(track)]
    return float(np.mean(np.abs(pitched - np.round(pitched)) < 0.25)) if len(pitched) else 0.0


def scale_consistency(track: npt.NDArray[np.float64]) -> float:
    """The share of pitched frames in the best-fitting major scale; even use of all notes gives 7/12."""
    pitched = np.round(track[~np.isnan(track)]).astype(int) % 12
    if len(pitched) == 0:
        return 0.0
    return max(float(np.isin((pitched - tonic) % 12, _MAJOR).mean()) for tonic in range(12))


def on_beat(onsets: npt.NDArray[np.float64], unit: float, tolerance: float = 0.02) -> float:
    """The share of gaps between onsets that are whole multiples of `unit` seconds, within `tolerance` seconds."""
    gaps = np.diff(onsets)
    if len(gaps) == 0:
        return 0.0
    return float((np.abs(gaps - np.round(gaps / unit) * unit) <= tolerance).mean())
