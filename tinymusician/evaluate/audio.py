"""Clips of reports as FLAC files."""

from __future__ import annotations

import numpy as np

from tinymusician.runtime.audio_reader import Wave


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
