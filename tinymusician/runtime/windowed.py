"""One piece of music on its way: a generation, or where it is longer than the model was trained on, a chain of them.

Each window goes on from the end of the one before: its first frames are given, and heard by the decoder again, so the
music has no seam (audiocraft's `generate_long` does the same). What a window has given is never changed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tinymusician.errors import EngineError
from tinymusician.runtime.engine import Codes, Engine, EngineRequest, RequestState

OVERLAP = 0.4
"""The share of a window that the next one hears again; audiocraft's is 12 of 30 seconds."""


class WindowedGeneration:
    """`request.frames` frames in windows of at most `window`, after the codes of a clip [K, C] if there is one."""

    def __init__(self, engine: Engine, request: EngineRequest, window: int) -> None:
        """`request.prefix` are the clip's codes; they are part of the frames."""
        self._engine, self._request, self._window = engine, request, window
        clip = request.prefix
        self._done: Codes = np.zeros((engine.num_codebooks, 0), np.int64) if clip is None else clip
        self._number, self._given, self._cancelled = 0, 0, False
        self._generation = self._next()

    @property
    def codes(self) -> Codes:
        """All frames that are ready, [K, T]."""
        new = self._generation.codes[:, self._given :]
        return np.concatenate([self._done, new], axis=1)

    @property
    def frames_ready(self) -> int:
        """How many frames have all their codes."""
        before: int = self._done.shape[1]
        return before + max(0, self._generation.frames_ready - self._given)

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self._generation.finished and (self._generation.failed or self.frames_ready == self._request.frames)

    @property
    def error(self) -> EngineError | None:
        """What went wrong, if something did."""
        return self._generation.error

    @property
    def frames(self) -> int:
        """How many frames there will be."""
        return self._request.frames

    def advance(self) -> None:
        """Go on to the next window if this one is complete; to be called after every step of the engine."""
        if self._generation.finished and not self.finished:
            self._done = self.codes
            self._number += 1
            self._generation = self._next()
            if self._cancelled:  # meanwhile, by another thread
                self._generation.cancel()

    def cancel(self) -> None:
        """Give up; the rows are free at the engine's next step or sweep."""
        self._cancelled = True
        self._generation.cancel()

    def _next(self) -> RequestState:
        done, frames = self._done.shape[1], self._request.frames
        overlap = done if frames <= self._window else min(done, int(OVERLAP * self._window))
        length = min(self._window, overlap + frames - done)
        self._given = overlap
        prefix = self._done[:, done - overlap :] if overlap else None
        return self._engine.start(replace(self._request, frames=length, prefix=prefix, window=self._number))
