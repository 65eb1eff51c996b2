"""16-bit PCM WAV files, written atomically."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tinymusician.artifacts.atomic import atomic_write
from tinymusician.errors import DataError


def write_wave(path: Path, samples: npt.NDArray[np.float32], rate: int) -> None:
    """Write mono samples [N] in [-1, 1]; louder samples are clipped.

    Raises:
        DataError: the file cannot be written.
    """
    pcm = (np.clip(samples, -1, 1) * 32767).round().astype("<i2")
    try:
        with atomic_write(path) as draft, wave.open(str(draft), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(pcm.tobytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error


def read_wave(path: Path, rate: int) -> npt.NDArray[np.float32]:
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
