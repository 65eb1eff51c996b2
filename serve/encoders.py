"""Streaming audio encoders: WAV with a length known from the start, FLAC, and Opus in Ogg."""

from __future__ import annotations

import io
import struct
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from serve.schemas import AudioFormat
from tinymusician.runtime.pcm16 import to_pcm16

Samples = npt.NDArray[np.float32]
MEDIA_TYPES: dict[AudioFormat, str] = {"wav": "audio/wav", "flac": "audio/flac", "opus": "audio/ogg"}
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)


class Encoder(Protocol):
    """Encodes one file."""

    def feed(self, samples: Samples) -> bytes:
        """Encode mono samples in [-1, 1], float32 [N]; louder samples are clipped. Returns the bytes that are ready."""

    def end(self) -> bytes:
        """Finish the file; returns the remaining bytes."""


def open_encoder(kind: AudioFormat, rate: int, samples: int) -> Encoder:
    """An encoder for `samples` mono samples at `rate` Hz."""
    if kind == "wav":
        return WavEncoder(rate, samples)
    return FlacEncoder(rate, samples) if kind == "flac" else OpusEncoder(rate)


def wav_size(samples: int) -> int:
    """The size in bytes of a 16-bit mono WAV file."""
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
        return header + to_pcm16(samples).astype("<i2").tobytes()

    def end(self) -> bytes:
        return b""


class FlacEncoder:
    """16-bit FLAC by libsndfile.

    libsndfile writes the length when it closes the file, which is too late for a stream: this class puts it into the
    header.
    """

    def __init__(self, rate: int, samples: int) -> None:
        self._file, self._samples, self._started = _SndfileEncoder(rate, "FLAC", "PCM_16"), samples, False

    def feed(self, samples: Samples) -> bytes:
        return self._with_length(self._file.write(samples))

    def end(self) -> bytes:
        return self._with_length(self._file.close())

    def _with_length(self, data: bytes) -> bytes:
        """Write the number of samples into the first bytes (RFC 9639, 8.2: the 36 bits before the MD5)."""
        if self._started or not data:
            return data
        self._started = True
        number = int.from_bytes(data[21:26], "big") | self._samples
        return data[:21] + number.to_bytes(5, "big") + data[26:]


class OpusEncoder:
    """Opus in Ogg by libsndfile, which supports five rates; soxr resamples others to 48 kHz."""

    def __init__(self, rate: int) -> None:
        self._resampler = None
        if rate not in _OPUS_RATES:
            import soxr

            self._resampler = soxr.ResampleStream(rate, 48000, 1, dtype="float32")
            rate = 48000
        self._file = _SndfileEncoder(rate, "OGG", "OPUS")

    def feed(self, samples: Samples) -> bytes:
        return self._file.write(self._resample(samples, last=False))

    def end(self) -> bytes:
        return self._file.write(self._resample(np.zeros(0, np.float32), last=True)) + self._file.close()

    def _resample(self, samples: Samples, last: bool) -> Samples:
        if self._resampler is None:
            return samples
        return np.asarray(self._resampler.resample_chunk(samples, last=last), np.float32)


class _SndfileEncoder:
    """A libsndfile encoder that returns its output as it is produced."""

    def __init__(self, rate: int, layout: str, subtype: str) -> None:
        import soundfile

        self._sink = _Sink()
        words = {"samplerate": rate, "channels": 1, "format": layout, "subtype": subtype}
        self._file: Any = soundfile.SoundFile(self._sink, "w", **words)

    def write(self, samples: Samples) -> bytes:
        self._file.write(np.clip(samples, -1, 1))
        return self._sink.take()

    def close(self) -> bytes:
        self._file.close()
        return self._sink.take()


class _Sink(io.RawIOBase):
    """A file object for libsndfile. Writes to positions that were taken already are dropped."""

    def __init__(self) -> None:
        self._buffer, self._taken, self._position = bytearray(), 0, 0

    def take(self) -> bytes:
        """The bytes written since the last call."""
        new = bytes(self._buffer)
        self._taken += len(new)
        self._buffer.clear()
        return new

    def write(self, data: Any) -> int:
        start = self._position - self._taken
        if start >= 0:
            self._buffer[start : start + len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._taken + len(self._buffer)}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
