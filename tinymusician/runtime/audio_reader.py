"""Reads audio of any format, rate and channel count as mono waves at a given rate.

libsndfile reads WAV (also 24 bit, float and extensible), FLAC, Ogg, MP3 and AIFF; PyAV, which is optional, reads what
phones and browsers record; libsoxr resamples at very high quality. Each conversion is recorded: a resampled clip has
another FAD than one that was recorded at that rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tinymusician.errors import DataError

Wave = npt.NDArray[np.float32]
_SNDFILE = (
    ".wav",
    ".wave",
    ".rf64",
    ".flac",
    ".ogg",
    ".oga",
    ".opus",
    ".mp3",
    ".aif",
    ".aiff",
    ".aifc",
    ".caf",
    ".w64",
    ".au",
)
_FFMPEG = (
    ".m4a",
    ".m4b",
    ".mp4",
    ".aac",
    ".webm",
    ".mka",
    ".mkv",
    ".wma",
    ".mov",
    ".avi",
    ".3gp",
    ".amr",
    ".wv",
    ".ape",
    ".mp2",
)
SUFFIXES = (*_SNDFILE, *_FFMPEG)
"""The suffixes of audio files, in lower case; files are recognized in any case."""
_SHORTEST_SECONDS = 0.1


@dataclass(frozen=True)
class LoadedClip:
    """A clip as a mono `wave` in [-1, 1] at `rate` Hz, and the conversions that it needed (`changed`).

    `file_seconds` is the length of the whole file.
    """

    wave: Wave
    rate: int
    file_seconds: float
    changed: tuple[str, ...] = ()


def read_clip(path: Path, rate: int | None, start: float = 0.0, seconds: float | None = None) -> LoadedClip:
    """Read `seconds` of a file from `start` on, or all of it, at a rate or at its own.

    Raises:
        DataError: it cannot be read, ends before `start`, is shorter than 0.1 s or has samples that are not finite.
    """
    frames, file_rate, length = _read(path, start, seconds)
    if start > 0 and start * file_rate >= length:
        raise DataError(f"{path}: lasts {length / file_rate:g} s; a clip from {start:g} s on is needed")
    _check_length(path, len(frames) / file_rate)
    if not np.isfinite(frames).all():
        raise DataError(f"{path}: has samples that are not finite")
    changed = () if frames.shape[1] == 1 else (f"{frames.shape[1]} channels averaged",)
    wave, whole = frames.mean(axis=1), length / file_rate
    if rate is None or file_rate == rate:
        return LoadedClip(wave, file_rate, whole, changed)
    return LoadedClip(resampled(wave, file_rate, rate), rate, whole, (*changed, f"resampled from {file_rate} Hz"))


def optional_decoder() -> str | None:
    """The version of PyAV, on which depends which files can be read; None without it."""
    return metadata.version("av") if find_spec("av") else None


def check_readable(path: Path) -> None:
    """Check that a file can be read, by its header where libsndfile reads it.

    Raises:
        DataError: it cannot, or is shorter than 0.1 s.
    """
    _check_length(path, audio_seconds(path))


def audio_seconds(path: Path) -> float:
    """The length of a file in seconds.

    Raises:
        DataError: it cannot be read.
    """
    import soundfile

    if _needs_av(path):
        frames, rate, _ = _read_av(path)
        return len(frames) / rate
    try:
        return float(soundfile.info(path).duration)
    except (soundfile.SoundFileError, OSError) as error:
        frames, rate, _ = _read_as_another_format(path, error)
        return len(frames) / rate


def resampled(wave: Wave, source_rate: int, rate: int) -> Wave:
    """A wave at another rate."""
    import soxr

    if source_rate == rate:
        return wave
    return np.asarray(soxr.resample(wave, source_rate, rate, quality="VHQ"), np.float32)


def count_changes(clips: Iterable[LoadedClip]) -> str:
    """The conversions of several clips with their numbers, such as `2 channels averaged: 30`; empty for none."""
    counts = Counter(change for clip in clips for change in clip.changed)
    return ", ".join(f"{change}: {count}" for change, count in sorted(counts.items()))


def _read(path: Path, start: float, seconds: float | None) -> tuple[Wave, int, int]:
    """The samples [N, channels] of a part of a file, its rate, and its length in samples."""
    import soundfile

    end = None if seconds is None else start + seconds
    if _needs_av(path):
        return _part(_read_av(path, end), start, seconds)
    try:
        with soundfile.SoundFile(path) as file:
            rate, length = int(file.samplerate), int(file.frames)
            file.seek(min(round(start * rate), length))
            count = -1 if seconds is None else round(seconds * rate)
            return file.read(count, dtype="float32", always_2d=True), rate, length
    except (soundfile.SoundFileError, OSError) as error:
        return _part(_read_as_another_format(path, error, end), start, seconds)


def _part(whole: tuple[Wave, int, int], start: float, seconds: float | None) -> tuple[Wave, int, int]:
    samples, rate, length = whole
    begin = round(start * rate)
    return samples[begin : None if seconds is None else begin + round(seconds * rate)], rate, length


def _read_as_another_format(path: Path, error: Exception, end: float | None = None) -> tuple[Wave, int, int]:
    """A file that is not what its suffix says, such as an M4A named .wav; with PyAV, if it is installed."""
    if isinstance(error, OSError):
        raise _unreadable(path, error) from error
    try:
        return _read_av(path, end)
    except DataError:
        raise _unreadable(path, error) from error


def _needs_av(path: Path) -> bool:
    return path.suffix.lower() in _FFMPEG


def _read_av(path: Path, end: float | None = None) -> tuple[Wave, int, int]:
    """The samples [N, channels] of a file that libsndfile does not read, its rate, and its length in samples.

    With `end`, in seconds, no more is decoded, and the length is that of what was.
    """
    try:
        import av
    except ModuleNotFoundError:
        raise DataError(
            f"{path}: {path.suffix} files are read with PyAV; run `pip install av`, or convert it to WAV or FLAC"
        ) from None
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise DataError(f"{path}: cannot be read as audio (it has no audio stream)")
            stream = container.streams.audio[0]
            rate, resampler = int(stream.rate), av.AudioResampler(format="fltp")
            decoded, count = [], 0
            for frame in container.decode(stream):
                decoded += resampler.resample(frame)
                count += frame.samples
                if end is not None and count >= end * rate:
                    break
            samples = np.concatenate([part.to_ndarray() for part in decoded], axis=1).T
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        raise _unreadable(path, error) from error
    return np.ascontiguousarray(samples, np.float32), rate, len(samples)


def _check_length(path: Path, seconds: float) -> None:
    if seconds < _SHORTEST_SECONDS:
        raise DataError(f"{path}: {seconds:g} s of audio; {_SHORTEST_SECONDS:g} s or more are needed")


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as audio ({' '.join(str(error).split())})")
