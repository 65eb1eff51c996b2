"""Reads and writes audio files: libsndfile encodes, by the file's suffix; files are replaced atomically."""

from __future__ import annotations

import io
import os
import stat
import sys
import tempfile
import wave
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tinymusician.artifacts.atomic import atomic_write
from tinymusician.errors import DataError

Samples = npt.NDArray[np.float32]
STDOUT = Path("-")
"""The path that stands for standard output."""
PEAK = 10 ** (-1 / 20)
"""-1 dB of full scale: the peak of audio that would clip otherwise."""
_OPUS_RATES, _OPUS_RATE = (8000, 12000, 16000, 24000, 48000), 48000


class _Format(NamedTuple):
    """A file format in libsndfile's terms."""

    container: str
    subtype: str


_FORMATS = {
    ".wav": _Format("WAV", "PCM_16"),
    ".flac": _Format("FLAC", "PCM_16"),
    ".ogg": _Format("OGG", "VORBIS"),
    ".opus": _Format("OGG", "OPUS"),
    ".mp3": _Format("MP3", "MPEG_LAYER_III"),
}


def supported_suffixes() -> list[str]:
    """The suffixes of the formats that this installation can write."""
    from soundfile import available_formats, available_subtypes

    return [
        suffix
        for suffix, form in _FORMATS.items()
        if form.container in available_formats() and form.subtype in available_subtypes(form.container)
    ]


def audio_format(path: Path) -> str:
    """The suffix that determines the format of a file; standard output, devices and pipes get WAV.

    Raises:
        DataError: the suffix is not one of a supported format.
    """
    suffix = path.suffix.lower()
    if suffix in supported_suffixes():
        return suffix
    if path == STDOUT or _is_special(path):
        return ".wav"
    raise DataError(f"{path}: the suffix is not known; supported are {', '.join(supported_suffixes())}")


def encode(samples: Samples, rate: int, suffix: str, title: str = "", comment: str = "") -> bytes:
    """A file with mono samples [N] in [-1, 1]; louder samples are clipped.

    `title` and `comment` are stored in the file's tags (WAV: an INFO chunk; FLAC, Ogg: Vorbis comments; MP3: ID3).
    """
    import soundfile

    form, sink = _FORMATS[suffix], io.BytesIO()
    if form.subtype == "OPUS" and rate not in _OPUS_RATES:
        import soxr

        samples, rate = soxr.resample(samples, rate, _OPUS_RATE, quality="VHQ"), _OPUS_RATE
    pcm = (np.clip(samples, -1, 1) * 32767).round().astype(np.int16)
    with soundfile.SoundFile(sink, "w", rate, 1, form.subtype, format=form.container) as file:
        for name, text in (("title", title), ("comment", comment)):
            if text:
                setattr(file, name, text)
        file.write(pcm)
    return sink.getvalue()


def limited(samples: Samples) -> tuple[Samples, float | None]:
    """The samples, scaled to a peak of -1 dB of full scale if they exceed full scale, and their peak in dB if so."""
    peak = float(np.abs(samples).max(initial=0))
    if peak <= 1:
        return samples, None
    return (samples * np.float32(PEAK / peak)).astype(np.float32), 20 * float(np.log10(peak))


def faded_out(samples: Samples, rate: int, seconds: float) -> Samples:
    """The samples with a linear fade to silence over the last `seconds`."""
    length = min(round(seconds * rate), len(samples))
    gain = np.ones(len(samples), np.float32)
    gain[len(samples) - length :] = np.linspace(1, 0, length, dtype=np.float32)
    return samples * gain


def normalized(samples: Samples, rate: int, loudness: float) -> Samples:
    """The samples at an integrated loudness in LUFS (ITU-R BS.1770-4, by pyloudnorm); silence stays silence.

    Raises:
        DataError: the audio is shorter than a block of the measurement, 0.4 s.
    """
    import pyloudnorm

    if len(samples) < 0.4 * rate:
        raise DataError("--normalize: 0.4 s of audio or more are needed")
    measured = pyloudnorm.Meter(rate).integrated_loudness(samples.astype(np.float64))
    return samples if np.isinf(measured) else samples * np.float32(10 ** ((loudness - measured) / 20))


def check_writable(path: Path, force: bool) -> None:
    """Check that audio can be written to a path, before any is generated.

    Raises:
        DataError: the folder is missing or read-only, or the file exists and `force` is false.
    """
    if path == STDOUT:
        return
    try:
        target = path if _is_special(path) else path.resolve()
    except (OSError, RuntimeError):
        raise DataError(f"--output {path}: leads through a loop of symbolic links") from None
    if target.is_dir():
        raise DataError(f"--output {path}: is a folder; give a file in it")
    if not target.parent.is_dir():
        raise DataError(f"--output {path}: no such folder as {target.parent}")
    if _is_special(path):
        if not os.access(path, os.W_OK):
            raise DataError(f"--output {path}: cannot be written (permission denied)")
        return
    if target.is_file() and not force:
        raise DataError(f"--output {path}: exists already; --force replaces it")
    try:
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise DataError(f"--output {path}: cannot be written ({error.strerror})") from None


def _is_special(path: Path) -> bool:
    """Whether a path is written to, not replaced: a device, a pipe, or an open file such as /dev/stdout."""
    is_open_file = path.is_relative_to("/dev") or path.is_relative_to("/proc")
    return path.exists() and not path.is_dir() and (is_open_file or not path.is_file())


def write(path: Path, data: bytes) -> None:
    """Write a file's bytes: to standard output, into a device or pipe, or as a regular file, atomically.

    A symbolic link stays, and its target is replaced. The mode of an existing file stays.

    Raises:
        DataError: it cannot be written.
    """
    try:
        if path == STDOUT:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif _is_special(path):
            with path.open("wb") as sink:
                sink.write(data)
        else:
            target = path.resolve()
            mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o644
            with atomic_write(target, mode) as draft:
                draft.write_bytes(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_wave(path: Path, samples: Samples, rate: int) -> None:
    """Write mono samples [N] in [-1, 1] as a 16-bit WAV file; louder samples are clipped.

    Raises:
        DataError: the file cannot be written.
    """
    write(path, encode(samples, rate, ".wav"))


def read_wave(path: Path, rate: int) -> Samples:
    """Read a 16-bit PCM WAV file as mono samples [N] in [-1, 1]; channels are averaged.

    Raises:
        DataError: the file is not 16-bit PCM WAV, or its sampling rate is not `rate`.
    """
    try:
        with wave.open(str(path)) as file:
            if file.getframerate() != rate or file.getsampwidth() != 2:
                given = f"{file.getframerate()} Hz, {8 * file.getsampwidth()} bit"
                raise DataError(f"{path}: {given}; {rate} Hz, 16 bit is needed")
            frames = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
    except (wave.Error, EOFError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable WAV file ({error})") from error
    return np.asarray(frames.mean(axis=1) / 32768, np.float32)
