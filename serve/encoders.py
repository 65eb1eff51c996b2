"""Samples to files as they come: WAV whose length is known from the start, FLAC, and Opus in Ogg."""

from __future__ import annotations

import io
import struct
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from serve.schemas import Format

Samples = npt.NDArray[np.float32]
MEDIA_TYPES: dict[Format, str] = {"wav": "audio/wav", "flac": "audio/flac", "opus": "audio/ogg"}
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)


class Encoder(Protocol):
    """Makes one file."""

    def feed(self, samples: Samples) -> bytes:
        """The bytes that these mono samples in [-1, 1] settle; what is louder is clipped."""

    def end(self) -> bytes:
        """The bytes that are left when no samples come any more."""


def encoder(kind: Format, rate: int, samples: int) -> Encoder:
    """An encoder for a piece of `samples` at `rate` Hz."""
    if kind == "wav":
        return WavEncoder(rate, samples)
    return FlacEncoder(rate, samples) if kind == "flac" else OpusEncoder(rate)


def wave_size(samples: int) -> int:
    """Bytes of a WAV file."""
    return _HEADER.size + 2 * samples


_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")


class WavEncoder:
    """16-bit PCM, mono (RIFF WAVE, format 1)."""

    def __init__(self, rate: int, samples: int) -> None:
        size = 2 * samples
        self._header = _HEADER.pack(
            b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", size
        )

    def feed(self, samples: Samples) -> bytes:
        header, self._header = self._header, b""
        return header + (np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes()

    def end(self) -> bytes:
        return b""


class FlacEncoder:
    """FLAC, 16 bit, by libsndfile, which says how long a file is when it closes it: too late for one that is sent."""

    def __init__(self, rate: int, samples: int) -> None:
        self._file, self._samples, self._begun = _SndfileEncoder(rate, "FLAC", "PCM_16"), samples, False

    def feed(self, samples: Samples) -> bytes:
        return self._with_length(self._file.packed(samples))

    def end(self) -> bytes:
        return self._with_length(self._file.ended())

    def _with_length(self, data: bytes) -> bytes:
        """The bytes; in the first ones the number of samples is written (RFC 9639, 8.2: the last 36 bits but MD5)."""
        if self._begun or not data:
            return data
        self._begun = True
        number = int.from_bytes(data[21:26], "big") | self._samples
        return data[:21] + number.to_bytes(5, "big") + data[26:]


class OpusEncoder:
    """Opus in Ogg, by libsndfile. It knows five rates; others are resampled to 48 kHz by soxr."""

    def __init__(self, rate: int) -> None:
        self._resampler = None
        if rate not in _OPUS_RATES:
            import soxr

            self._resampler = soxr.ResampleStream(rate, 48000, 1, dtype="float32")
            rate = 48000
        self._file = _SndfileEncoder(rate, "OGG", "OPUS")

    def feed(self, samples: Samples) -> bytes:
        return self._file.packed(self._resampled(samples, last=False))

    def end(self) -> bytes:
        return self._file.packed(self._resampled(np.zeros(0, np.float32), last=True)) + self._file.ended()

    def _resampled(self, samples: Samples, last: bool) -> Samples:
        if self._resampler is None:
            return samples
        return np.asarray(self._resampler.resample_chunk(samples, last=last), np.float32)


class _SndfileEncoder:
    """A file of libsndfile that is sent off as it grows."""

    def __init__(self, rate: int, layout: str, subtype: str) -> None:
        import soundfile

        self._sink = _Sink()
        words = {"samplerate": rate, "channels": 1, "format": layout, "subtype": subtype}
        self._file: Any = soundfile.SoundFile(self._sink, "w", **words)

    def packed(self, samples: Samples) -> bytes:
        self._file.write(np.clip(samples, -1, 1))
        return self._sink.taken()

    def ended(self) -> bytes:
        self._file.close()
        return self._sink.taken()


class _Sink(io.RawIOBase):
    """Where libsndfile writes. What it writes over bytes that have left already is dropped."""

    def __init__(self) -> None:
        self._buffer, self._gone, self._place = bytearray(), 0, 0

    def taken(self) -> bytes:
        """What came since the last call."""
        new = bytes(self._buffer)
        self._gone += len(new)
        self._buffer.clear()
        return new

    def write(self, data: Any) -> int:
        start = self._place - self._gone
        if start >= 0:
            self._buffer[start : start + len(data)] = data
        self._place += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._gone + len(self._buffer)}[whence]
        self._place = origin + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
