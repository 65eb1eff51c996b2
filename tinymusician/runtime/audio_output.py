"""The format of audio files, and WAV files."""

from __future__ import annotations

from pathlib import Path

from tinymusician.artifacts.output_file import STDOUT, is_special, write_output
from tinymusician.errors import DataError
from tinymusician.runtime.audio import Samples, encode, supported_suffixes


def audio_format(path: Path) -> str:
    """The suffix that determines the format of a file; standard output, devices and pipes get WAV.

    Raises:
        DataError: the suffix is not one of a supported format.
    """
    suffix = path.suffix.lower()
    if suffix in supported_suffixes():
        return suffix
    if path == STDOUT or is_special(path):
        return ".wav"
    raise DataError(f"{path}: the suffix is not known; supported are {', '.join(supported_suffixes())}")


def write_wave(path: Path, samples: Samples, rate: int) -> None:
    """Write mono samples [N] in [-1, 1] as a 16-bit WAV file; louder samples are clipped.

    Raises:
        DataError: the file cannot be written.
    """
    write_output(path, encode(samples, rate, ".wav"))
