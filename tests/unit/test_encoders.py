"""Encoded audio, read back by libsndfile and by Python's own `wave`."""

from __future__ import annotations

import io
import wave

import numpy as np
import pytest
import soundfile

from serve.encoders import Samples, open_encoder, wav_size
from serve.schemas import AudioFormat


def tone(rate: int, seconds: float = 1.5, hertz: float = 440.0) -> Samples:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def encoded(kind: AudioFormat, rate: int, samples: Samples, pieces: int) -> list[bytes]:
    file = open_encoder(kind, rate, len(samples))
    return [*(file.feed(piece) for piece in np.array_split(samples, pieces)), file.end()]


def test_wav_header_has_the_length_before_the_data() -> None:
    samples = tone(16_000)
    parts = encoded("wav", 16_000, samples, 7)
    assert len(b"".join(parts)) == wav_size(len(samples))
    with wave.open(io.BytesIO(b"".join(parts))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (16_000, 1, len(samples))
        read = np.frombuffer(file.readframes(len(samples)), "<i2") / 32767
    assert np.abs(read - samples).max() <= 0.5 / 32767 + 1e-7
    with wave.open(io.BytesIO(parts[0])) as begun:
        assert begun.getnframes() == len(samples)


@pytest.mark.parametrize("rate", [800, 16_000, 32_000])
def test_flac_is_lossless_at_sixteen_bits(rate: int) -> None:
    samples = tone(rate)
    read, result = soundfile.read(io.BytesIO(b"".join(encoded("flac", rate, samples, 5))), dtype="float32")
    assert result == rate
    assert len(read) == len(samples)
    assert np.abs(read - samples).max() <= 1 / 32768


@pytest.mark.parametrize("rate", [16_000, 32_000])
def test_opus_keeps_pitch_and_length(rate: int) -> None:
    samples = tone(rate, seconds=3)
    read, result = soundfile.read(io.BytesIO(b"".join(encoded("opus", rate, samples, 5))), dtype="float32")
    assert abs(len(read) / result - 3) < 0.05
    spectrum = np.abs(np.fft.rfft(read * np.hanning(len(read))))
    assert abs(np.argmax(spectrum) * result / len(read) - 440) < 1
    assert 0.4 < np.abs(read[result : 2 * result]).max() < 0.6


@pytest.mark.parametrize("kind", ["wav", "flac", "opus"])
def test_audio_is_streamed_during_generation(kind: AudioFormat) -> None:
    parts = encoded(kind, 16_000, np.random.default_rng(0).normal(0, 0.1, 96_000).astype(np.float32), 6)
    assert sum(len(part) > 0 for part in parts[:-1]) >= 4


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_loud_audio_is_clipped(kind: AudioFormat) -> None:
    samples = np.array([3.0, -3.0, 0.25] * 2000, np.float32)
    read, _ = soundfile.read(io.BytesIO(b"".join(encoded(kind, 16_000, samples, 3))), dtype="float32")
    assert np.allclose(read[:3], [1, -1, 0.25], atol=1e-4)
