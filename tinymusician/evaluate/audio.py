"""Reads clips of any format, rate and channel count as mono waves at a given rate.

libsndfile reads WAV, FLAC, Ogg and MP3; libsoxr resamples at very high quality. Each conversion is recorded: a
resampled clip has another FAD than one that was recorded at that rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tinymusician.errors import DataError

Wave = npt.NDArray[np.float32]
_SHORTEST_SECONDS = 0.1


@dataclass(frozen=True)
class LoadedClip:
    """A clip as a mono `wave` in [-1, 1], and the conversions that it needed (`changed`)."""

    wave: Wave
    changed: tuple[str, ...] = ()


def read_clip(path: Path, rate: int, start: float = 0.0, seconds: float | None = None) -> LoadedClip:
    """Read `seconds` of a file from `start` on, or all of it.

    Raises:
        DataError: it cannot be read, ends before `start`, is shorter than 0.1 s or has samples that are not finite.
    """
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            file_rate = int(file.samplerate)
            begin, count = round(start * file_rate), -1 if seconds is None else round(seconds * file_rate)
            if begin >= file.frames:
                raise DataError(f"{path}: lasts {file.frames / file_rate:g} s; a clip from {start:g} s on is needed")
            file.seek(begin)
            frames = file.read(count, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise DataError(f"{path}: cannot be read as audio ({' '.join(str(error).split())})") from error
    if len(frames) < _SHORTEST_SECONDS * file_rate:
        raise DataError(f"{path}: {len(frames) / file_rate:g} s of audio; {_SHORTEST_SECONDS:g} s or more are needed")
    if not np.isfinite(frames).all():
        raise DataError(f"{path}: has samples that are not finite")
    changed = () if frames.shape[1] == 1 else (f"{frames.shape[1]} channels averaged",)
    wave = frames.mean(axis=1)
    if file_rate != rate:
        return LoadedClip(resampled(wave, file_rate, rate), (*changed, f"resampled from {file_rate} Hz"))
    return LoadedClip(wave, changed)


def resampled(wave: Wave, source_rate: int, rate: int) -> Wave:
    """A wave at another rate."""
    import soxr

    if source_rate == rate:
        return wave
    return np.asarray(soxr.resample(wave, source_rate, rate, quality="VHQ"), np.float32)


def decode_flac(flac: bytes) -> tuple[Wave, int]:
    """The mono wave of a FLAC file, and its rate in Hz."""
    import io

    import soundfile

    wave, rate = soundfile.read(io.BytesIO(flac), dtype="float32")
    return wave, int(rate)


def encode_flac(wave: Wave, rate: int) -> bytes:
    """A mono wave as a 16-bit FLAC file."""
    import io

    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1, 1), rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
