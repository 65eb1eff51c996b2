"""Generation of any length: one engine request per window of the length that the model was trained on.

Each window continues the previous one: its first frames are given, so the music has no seam (as audiocraft's
`MusicGen._generate_tokens`). Codes of a completed window never change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tinymusician.errors import EngineError
from tinymusician.runtime.engine import Codes, Engine, EngineRequest, RequestState, RequestStatus

OVERLAP = 0.4
"""The share of a window that is given to the next one; audiocraft's is 12 of 30 seconds."""


class WindowedGeneration:
    """Generates sections one after the other, in windows of at most `window` frames."""

    def __init__(self, engine: Engine, sections: Sequence[EngineRequest], window: int) -> None:
        """`frames` of a section is the frame at which it ends.

        The `prefix` [K, P] of the first section are codes to continue; they count among the frames.
        """
        self._engine, self._sections, self._window = engine, sections, window
        clip = sections[0].prefix
        self._codes_done: Codes = np.zeros((engine.num_codebooks, 0), np.int64) if clip is None else clip
        self._window_index, self._given, self._cancelled = 0, 0, False
        self._state = self._start_window()

    @property
    def codes(self) -> Codes:
        """All frames that are ready, [K, T]."""
        new = self._state.codes[:, self._given :]
        return np.concatenate([self._codes_done, new], axis=1)

    @property
    def frames_ready(self) -> int:
        """How many frames have all their codes."""
        before: int = self._codes_done.shape[1]
        return before + max(0, self._state.frames_ready - self._given)

    @property
    def is_finished(self) -> bool:
        """Whether no more codes will come: it is complete, cancelled or failed."""
        is_complete = self.frames_ready == self.frames
        return self._state.is_finished and (is_complete or self._state.status is not RequestStatus.FINISHED)

    @property
    def error(self) -> EngineError | None:
        """The error that ended it, if any."""
        return self._state.error

    @property
    def frames(self) -> int:
        """The number of frames when complete."""
        return self._sections[-1].frames

    def advance(self) -> None:
        """Start the next window if this one is complete; call this after every step of the engine."""
        if self._state.is_finished and not self.is_finished:
            self._codes_done = self.codes
            self._window_index += 1
            self._state = self._start_window()
            if self._cancelled:  # meanwhile, by another thread
                self._state.cancel()

    def cancel(self) -> None:
        """Cancel; the engine frees the rows at its next `step` or `reap`."""
        self._cancelled = True
        self._state.cancel()

    def _start_window(self) -> RequestState:
        done = self._codes_done.shape[1]
        section = next(one for one in self._sections if one.frames > done)
        overlap = done if self.frames <= self._window else min(done, int(OVERLAP * self._window))
        length = min(self._window, overlap + section.frames - done)
        self._given = overlap
        prefix = self._codes_done[:, done - overlap :] if overlap else None
        return self._engine.start(replace(section, frames=length, prefix=prefix, window=self._window_index))
