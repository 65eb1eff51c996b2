"""Encodes audio files with libsndfile, by the file's suffix."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tinymusician.runtime.pcm16 import to_pcm16

Samples = npt.NDArray[np.float32]
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


def encode(samples: Samples, rate: int, suffix: str, title: str = "", comment: str = "") -> bytes:
    """A file with mono samples [N] in [-1, 1]; louder samples are clipped.

    `title` and `comment` are stored in the file's tags (WAV: an INFO chunk; FLAC, Ogg: Vorbis comments; MP3: ID3).
    """
    import soundfile

    form, sink = _FORMATS[suffix], io.BytesIO()
    if form.subtype == "OPUS" and rate not in _OPUS_RATES:
        import soxr

        samples, rate = soxr.resample(samples, rate, _OPUS_RATE, quality="VHQ"), _OPUS_RATE
    pcm = to_pcm16(samples)
    with soundfile.SoundFile(sink, "w", rate, 1, form.subtype, format=form.container) as file:
        for name, text in (("title", title), ("comment", comment)):
            if text:
                setattr(file, name, text)
        file.write(pcm)
    return sink.getvalue()
