"""Decodes codes to audio, at once or incrementally, with equal samples either way.

The codec's graph takes what a stream needs: the frames of context of its convolutions, and the state of its LSTM.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinymusician.runtime.errors import as_engine_error
from tinymusician.runtime.session import Array, Session

Codes = npt.NDArray[np.int64]
Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CodecSpec:
    """`sampling_rate` in Hz, samples per frame (`hop`), frames of context before and after the LSTM."""

    sampling_rate: int
    hop: int
    context_before: int
    context_after: int

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sampling_rate / self.hop


class CodecDecoder:
    """Runs the codec decoder's graph."""

    def __init__(self, session: Session, shape: CodecSpec) -> None:
        self.session, self.shape = session, shape
        inputs = {value.name: value.shape for value in session.get_inputs()}
        self.state_shape = (1, int(inputs["state"][1]), int(inputs["state"][2]))
        self.fewest = shape.context_before + 1

    def __call__(self, codes_KT: Codes) -> Samples:
        """Decode codes [K, T] to samples [T · hop]."""
        return StreamingDecoder(self).feed(codes_KT, last=True)


class StreamingDecoder:
    """Decodes a growing sequence of codes to the samples that no later code can change."""

    def __init__(self, decoder: CodecDecoder) -> None:
        self._decoder = decoder
        width = decoder.state_shape[2]
        self._state = np.zeros(decoder.state_shape, np.float32)
        self._latent_tail = np.zeros((1, width, 0), np.float32)
        self._remembered = 0
        self._tail_start = 0
        self._given = 0

    def feed(self, codes_KT: Codes, last: bool) -> Samples:
        """The next samples that `codes_KT`, all codes so far, determine.

        With `last`, these are all codes. The concatenated results equal the wave decoded at once.
        """
        shape, available = self._decoder.shape, codes_KT.shape[1]
        through = available if last else available - shape.context_before
        ready = through if last else through - shape.context_after
        if ready <= self._given:
            return np.zeros(0, np.float32)
        start = max(0, self._remembered - shape.context_before)
        feeds: dict[str, Array] = {
            "codes": np.ascontiguousarray(codes_KT[None, :, start:]),
            "cut": np.array([self._remembered - start, available - through], np.int64),
            "state": self._state,
            "kept": self._latent_tail,
        }
        try:
            audio, latent, self._state = self._decoder.session.run(["audio", "latent", "state_after"], feeds)
        except Exception as error:  # ONNX Runtime's exceptions
            raise as_engine_error("the codec", error) from error
        first, end = ((frame - self._tail_start) * shape.hop for frame in (self._given, ready))
        keep_from = max(0, ready - shape.context_after)
        self._latent_tail = np.ascontiguousarray(latent[:, :, keep_from - self._tail_start :])
        self._remembered, self._tail_start, self._given = through, keep_from, ready
        return np.asarray(audio[0, first:end], np.float32)
