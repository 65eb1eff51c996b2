"""Reads audio of any format, rate and channel count as mono waves at a given rate.

libsndfile reads WAV (also 24 bit, float and extensible), FLAC, Ogg, MP3 and AIFF; PyAV, which is optional, reads what
phones and browsers record; libsoxr resamples at very high quality. Each conversion is recorded: a resampled clip has
another FAD than one that was recorded at that rate.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tinymusician.errors import DataError

if TYPE_CHECKING:
    from av.container import InputContainer
    from soundfile import SoundFile

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
_MISSING_TOLERANCE = 0.1  # seconds
_DATA_SIZES = re.compile(r"(?:data|SSND) *: *(?P<stated>\d+) \(should be (?P<actual>\d+)\)")
"""How libsndfile says that a file has another number of bytes than its header."""
_UNKNOWN_SIZE = 2**32 - 2**20
"""Programs that do not know the size yet write the largest there is."""
_BLOCK = 1 << 17
"""Samples of all channels that are read at once."""


@dataclass(frozen=True)
class LoadedClip:
    """A clip as a mono `wave` in [-1, 1] at `rate` Hz, and the conversions that it needed (`changed`).

    `file_seconds` is the length of the whole file. `missing_seconds` is what the header announces but the file
    does not contain: it was cut off, or is damaged.
    """

    wave: Wave
    rate: int
    file_seconds: float
    changed: tuple[str, ...] = ()
    missing_seconds: float = 0.0


def read_clip(path: Path, rate: int | None, start: float = 0.0, seconds: float | None = None) -> LoadedClip:
    """Read `seconds` of a file from `start` on, or all of it, at a rate or at its own.

    The file is read in blocks: only the result is in memory.

    Raises:
        DataError: it cannot be read, ends before `start`, is shorter than 0.1 s or has samples that are not finite.
    """
    with _opened(path) as source:
        mono = _MonoResampler(source.rate, rate)
        begin, count = round(start * source.rate), None if seconds is None else round(seconds * source.rate)
        channels = 1
        for block in source.blocks(begin, count):
            channels = block.shape[1]
            mono.add(block)
        length = source.length
        missing = _missing_seconds(source, begin, count, mono.samples)
    if start > 0 and start * source.rate >= length:
        raise DataError(f"{path}: lasts {length / source.rate:g} s; a clip from {start:g} s on is needed")
    _check_length(path, mono.samples / source.rate)
    wave = mono.finish()
    if not np.isfinite(wave).all():
        raise DataError(f"{path}: has samples that are not finite")
    changed = () if channels == 1 else (f"{channels} channels averaged",)
    if missing:
        changed = (*changed, f"{missing:.1f} s that its header announces are missing")
    if rate not in (None, source.rate):
        changed = (*changed, f"resampled from {source.rate} Hz")
    return LoadedClip(wave, rate or source.rate, length / source.rate, changed, missing)


def pyav_version() -> str | None:
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
    with _opened(path) as source:
        if isinstance(source, _FfmpegSource):
            for _ in source.blocks(0, None):  # only decoding tells
                pass
        return source.length / source.rate


def resampled(wave: Wave, source_rate: int, rate: int) -> Wave:
    """A wave at another rate."""
    import soxr

    if source_rate == rate:
        return wave
    return np.asarray(soxr.resample(wave, source_rate, rate, quality="VHQ"), np.float32)


def describe_conversions(clips: Iterable[LoadedClip]) -> str:
    """The conversions of several clips with their numbers, such as `2 channels averaged: 30`; empty for none."""
    counts = Counter(change for clip in clips for change in clip.changed)
    return ", ".join(f"{change}: {count}" for change, count in sorted(counts.items()))


def _missing_seconds(source: _SndfileSource | _FfmpegSource, begin: int, count: int | None, read: int) -> float:
    """What a header announces of a part of a file, and is not there."""
    announced = source.announced if count is None else min(source.announced, begin + count)
    missing = (announced - begin - read) / source.rate
    return missing if missing > _MISSING_TOLERANCE else 0.0


class _MonoResampler:
    """Averages the channels of blocks, and resamples them as a whole wave would be (libsoxr, very high quality)."""

    def __init__(self, source_rate: int, rate: int | None) -> None:
        import soxr

        self.samples, self._parts = 0, list[Wave]()
        self._stream = None
        if rate not in (None, source_rate):
            self._stream = soxr.ResampleStream(source_rate, rate, 1, dtype="float32", quality="VHQ")

    def add(self, block_NC: Wave) -> None:
        """The next samples, [N, channels]."""
        self.samples += len(block_NC)
        mono = block_NC.mean(axis=1)
        self._parts.append(mono if self._stream is None else self._stream.resample_chunk(mono))

    def finish(self) -> Wave:
        """The whole wave."""
        if self._stream is not None:
            self._parts.append(self._stream.resample_chunk(np.zeros(0, np.float32), last=True))
        return np.concatenate(self._parts)


class _SndfileSource:
    """A file that libsndfile has opened."""

    def __init__(self, file: SoundFile) -> None:
        self._file, self.rate, self.length = file, int(file.samplerate), int(file.frames)
        self.announced = self.length
        if (sizes := _DATA_SIZES.search(file.extra_info)) and 0 < int(sizes["actual"]) < int(
            sizes["stated"]
        ) < _UNKNOWN_SIZE:
            self.announced = round(self.length * int(sizes["stated"]) / int(sizes["actual"]))

    def blocks(self, begin: int, count: int | None) -> Iterator[Wave]:
        """Samples [N, channels] from `begin` on, `count` of them or all."""
        if begin:  # some codecs and pipes cannot seek
            self._file.seek(min(begin, self.length))
        left, most = self.length if count is None else count, max(1, _BLOCK // self._file.channels)
        while left > 0 and len(block := self._file.read(min(left, most), dtype="float32", always_2d=True)):
            left -= len(block)
            yield block


class _FfmpegSource:
    """A file that PyAV has opened. Its `length` is that of what was decoded, which ends with the last block."""

    def __init__(self, container: InputContainer) -> None:
        self._container, self._stream = container, container.streams.audio[0]
        self.rate, self.length = int(self._stream.rate), 0

    @property
    def announced(self) -> int:
        """The header's length is an estimate in many formats, so what was decoded counts."""
        return self.length

    def blocks(self, begin: int, count: int | None) -> Iterator[Wave]:
        """Samples [N, channels] from `begin` on, `count` of them or all."""
        import av

        resampler = av.AudioResampler(format="fltp")
        for frame in self._container.decode(self._stream):
            for part in resampler.resample(frame):
                block = np.asarray(part.to_ndarray().T, np.float32)
                start, self.length = self.length, self.length + len(block)
                end = None if count is None else max(0, begin + count - start)
                if len(selected := block[max(0, begin - start) : end]):
                    yield selected
            if count is not None and self.length >= begin + count:
                return


@contextmanager
def _opened(path: Path) -> Iterator[_SndfileSource | _FfmpegSource]:
    """A file, opened by the library that reads it: one may be what its suffix does not say, such as an M4A named .wav.

    Raises:
        DataError: it cannot be read, now or while its blocks are.
    """
    import soundfile

    if path.is_dir():
        raise DataError(f"{path}: is a folder; an audio file is needed")
    if not path.exists():
        raise DataError(f"{path}: does not exist")
    with ExitStack() as stack:
        source: _SndfileSource | _FfmpegSource
        if path.suffix.lower() in _FFMPEG:
            source = stack.enter_context(_ffmpeg(path))
        else:
            try:
                source = _SndfileSource(stack.enter_context(soundfile.SoundFile(_name(path))))
            except OSError as error:
                raise _unreadable(path, error) from error
            except soundfile.SoundFileError as error:
                try:
                    source = stack.enter_context(_ffmpeg(path))
                except DataError:
                    raise _unreadable(path, error) from error
        try:
            yield source
        except soundfile.SoundFileError as error:
            raise _unreadable(path, error) from error


@contextmanager
def _ffmpeg(path: Path) -> Iterator[_FfmpegSource]:
    """A file that PyAV reads, if it is installed."""
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
            yield _FfmpegSource(container)
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        raise _unreadable(path, error) from error


def _name(path: Path) -> str | bytes:
    """A path for libsndfile: as bytes where a name need not be text in UTF-8."""
    return os.fsencode(path) if os.name == "posix" else str(path)


def _check_length(path: Path, seconds: float) -> None:
    if seconds < _SHORTEST_SECONDS:
        raise DataError(f"{path}: {seconds:g} s of audio; {_SHORTEST_SECONDS:g} s or more are needed")


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as audio ({' '.join(str(error).split())})")
