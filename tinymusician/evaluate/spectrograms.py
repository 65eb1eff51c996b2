"""Spectrograms of clips, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinymusician.plots import png, pyplot
from tinymusician.runtime.audio_reader import Wave

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_spectrogram(wave: Wave, rate: int) -> bytes:
    """A small spectrogram of up to 5 kHz or half the rate, from -140 to -40 dB."""
    figure, axis = pyplot().subplots(figsize=(3.4, 1.5), layout="constrained")
    _draw_spectrogram(axis, wave, rate)
    axis.set_axis_off()
    return png(figure, 80)


def plot_spectrograms(clips: Sequence[tuple[str, Wave, int]]) -> bytes:
    """Spectrograms side by side, of (label, wave, rate), with axes in seconds and Hz."""
    figure, axes = pyplot().subplots(
        1, len(clips), figsize=(3.6 * len(clips), 2.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (label, wave, rate) in zip(axes[0], clips, strict=True):
        _draw_spectrogram(axis, wave, rate)
        axis.set_title(label)
        axis.set_xlabel("s")
    axes[0, 0].set_ylabel("Hz")
    return png(figure)


def _draw_spectrogram(axis: Axes, wave: Wave, rate: int) -> None:
    with np.errstate(divide="ignore"):
        axis.specgram(wave + 1e-9, NFFT=1024, Fs=rate, noverlap=768, cmap="magma", vmin=-140, vmax=-40)
    axis.set_ylim(0, min(5000, rate / 2))
