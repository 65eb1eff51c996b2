"""Reading audio in blocks: equal to the whole at once, in little memory; what a file lacks is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from tinymusician.errors import DataError
from tinymusician.runtime.audio_reader import audio_seconds, read_clip

SECONDS, RATE = 7, 44_100
NOISE = (0.1 * np.random.default_rng(0).standard_normal((SECONDS * RATE + 17, 2))).astype(np.float32)
PEAK = """
import resource, sys
from pathlib import Path
from tinymusician.runtime.audio_reader import read_clip
read_clip(Path(sys.argv[1]), 16000, 0.0, 1.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_clip(Path(sys.argv[1]), 16000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_blocks_give_the_whole_wave(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", NOISE, RATE, "FLOAT")
    clip = read_clip(tmp_path / "a.wav", 16_000)
    expected = soxr.resample(NOISE.mean(axis=1), RATE, 16_000, quality="VHQ")
    np.testing.assert_allclose(clip.wave, expected, atol=1e-6)
    assert clip.changed == ("2 channels averaged", "resampled from 44100 Hz")
    part = read_clip(tmp_path / "a.wav", None, 1.0, 3.5)
    np.testing.assert_array_equal(part.wave, NOISE[RATE : RATE + round(3.5 * RATE)].mean(axis=1))
    assert audio_seconds(tmp_path / "a.wav") == pytest.approx(len(NOISE) / RATE)


def test_memory_is_that_of_the_result(tmp_path: Path) -> None:
    """Five minutes of eight channels are 423 MB, and 19 MB at 16 kHz."""
    silence = np.zeros((60 * RATE, 8), np.int16)
    with soundfile.SoundFile(tmp_path / "long.flac", "w", RATE, 8, "PCM_16") as file:
        for _ in range(5):
            file.write(silence)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "long.flac")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(ended.stdout) / 1024 < 80


@pytest.mark.parametrize("suffix", ["wav", "mp3"])
def test_a_file_that_was_cut_off(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole.{suffix}"
    soundfile.write(whole, NOISE[:, 0], RATE)
    (cut := tmp_path / f"cut.{suffix}").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    clip = read_clip(cut, 16_000)
    assert clip.missing_seconds == pytest.approx(SECONDS / 2, abs=0.3)
    assert "s that its header announces are missing" in clip.changed[0]
    assert read_clip(whole, 16_000).missing_seconds == 0
    assert read_clip(cut, 16_000, 0.5, 1.0).missing_seconds == 0, "the part is whole"


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        read_clip(tmp_path, None)
    with pytest.raises(DataError, match=r"no\.wav: does not exist"):
        read_clip(tmp_path / "no.wav", None)


def test_codecs_that_cannot_seek_are_read_from_the_beginning(tmp_path: Path) -> None:
    """GSM 6.10, as in voicemail."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8_000) / 8_000)
    soundfile.write(tmp_path / "voice.wav", tone, 8_000, "GSM610")
    assert np.sqrt(np.square(read_clip(tmp_path / "voice.wav", None).wave).mean()) == pytest.approx(0.354, abs=0.03)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names in Unicode alone")
def test_names_of_files_need_not_be_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"reel\xff.wav")
    soundfile.write(os.fsencode(path), NOISE[:RATE], RATE)
    assert read_clip(path, None).file_seconds == 1.0
    path.write_bytes(b"no audio")
    with pytest.raises(DataError, match="cannot be read as audio"):
        read_clip(path, None)
