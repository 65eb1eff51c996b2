"""Audio files: formats by suffix, tags, peak, fade, loudness, and where they may be written."""

from __future__ import annotations

import io
import os
import stat
import sys
import threading
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tinymusician.artifacts import output_file
from tinymusician.errors import DataError, RequestError
from tinymusician.runtime import audio, audio_output, loudness

RATE = 16000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3"])
def test_formats_keep_audio_and_tags(suffix: str) -> None:
    with soundfile.SoundFile(io.BytesIO(audio.encode(TONE, RATE, suffix, "a jig", "seed=7"))) as file:
        assert (file.title, file.comment, file.samplerate, file.channels) == ("a jig", "seed=7", RATE, 1)
        samples = file.read(dtype="float32")
    spectrum = np.abs(np.fft.rfft(samples))
    assert spectrum.argmax() * RATE / len(samples) == pytest.approx(440, abs=5)
    assert np.sqrt(np.mean(samples[4000:12000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.03)


def test_lossless_formats_equal_rounding() -> None:
    expected = np.round(TONE * 32767).astype("<i2")
    with wave.open(io.BytesIO(audio.encode(TONE, RATE, ".wav"))) as file:
        np.testing.assert_array_equal(np.frombuffer(file.readframes(RATE), "<i2"), expected)
    flac, _ = soundfile.read(io.BytesIO(audio.encode(TONE, RATE, ".flac")), dtype="int16")
    np.testing.assert_array_equal(flac, expected)


def test_opus_resamples_other_rates() -> None:
    with soundfile.SoundFile(io.BytesIO(audio.encode(TONE, 32000, ".opus"))) as file:
        assert file.samplerate == 48000
        assert file.frames / file.samplerate == pytest.approx(len(TONE) / 32000, abs=0.02)


def test_unknown_suffix_names_the_supported_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.xyz: the suffix is not known; supported are \.wav, \.flac"):
        audio_output.audio_format(tmp_path / "a.xyz")
    assert audio_output.audio_format(Path("A.FLAC")) == ".flac"
    assert audio_output.audio_format(Path("-")) == audio_output.audio_format(Path("/dev/null")) == ".wav"


def test_clipping_audio_is_limited_to_minus_one_decibel() -> None:
    assert loudness.normalize_peak(TONE) == (TONE, None)
    samples, peak = loudness.normalize_peak(4 * TONE)
    assert peak == pytest.approx(20 * np.log10(2), abs=1e-3)
    assert np.abs(samples).max() == pytest.approx(10 ** (-1 / 20), rel=1e-6)


def test_fade_out_is_linear() -> None:
    ones = np.ones(RATE, np.float32)
    faded = loudness.fade_out_samples(ones, RATE, 0.5)
    assert (faded[: RATE // 2] == 1).all()
    np.testing.assert_allclose(faded[RATE // 2 :], np.linspace(1, 0, RATE // 2), atol=1e-6)
    assert (loudness.fade_out_samples(ones, RATE, 0) == ones).all()
    assert loudness.fade_out_samples(ones, RATE, 9)[0] == 1


def test_normalize_reaches_the_loudness() -> None:
    """A sine of 997 Hz at full scale has -3.01 LUFS (ITU-R BS.1770-4, annex 1)."""
    seconds = np.arange(5 * 48000) / 48000
    tone = np.sin(2 * np.pi * 997 * seconds).astype(np.float32)
    quiet = loudness.normalized(0.01 * tone, 48000, -23.01)
    assert np.abs(quiet).max() == pytest.approx(0.1, rel=0.01)
    silence = np.zeros(RATE, np.float32)
    assert (loudness.normalized(silence, RATE, -14) == 0).all()
    with pytest.raises(RequestError, match=r"0\.4 s"):
        loudness.normalized(silence[:100], RATE, -14)


def test_existing_file_keeps_its_mode_and_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target.wav", tmp_path / "link.wav"
    target.write_bytes(b"old")
    target.chmod(0o600)
    link.symlink_to("target.wav")
    with pytest.raises(DataError, match=r"exists already; --force replaces it"):
        output_file.check_writable(link, force=False)
    output_file.check_writable(link, force=True)
    output_file.write_output(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_fifo_is_written_into(tmp_path: Path) -> None:
    fifo, received = tmp_path / "pipe", list[bytes]()
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: received.append(fifo.read_bytes()))
    reader.start()
    output_file.check_writable(fifo, force=False)
    output_file.write_output(fifo, b"music")
    reader.join(30)
    assert received == [b"music"]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_device_stays_a_device() -> None:
    output_file.check_writable(Path("/dev/null"), force=False)
    output_file.write_output(Path("/dev/null"), b"music")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_standard_output_has_only_the_file(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    output_file.write_output(audio_output.STDOUT, b"music")
    assert capfdbinary.readouterr().out == b"music"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none/a.wav", "no such folder as"),
        ("folder", "is a folder"),
        ("loop", "leads through a loop"),
    ],
)
def test_unwritable_paths_are_refused(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=message):
        output_file.check_writable(tmp_path / path, force=True)


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs Linux, as root")
def test_read_only_folders_are_refused() -> None:
    with pytest.raises(DataError, match="cannot be written"):
        output_file.check_writable(Path("/sys/a.wav"), force=True)
